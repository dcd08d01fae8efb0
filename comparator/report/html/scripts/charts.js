// Charts of a tensor, drawn by uPlot.
