"""The report as one page: records in, one self-contained HTML file out."""
