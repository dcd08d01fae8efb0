"""How often the comparator alarms on clean pairs, and how many planted faults it finds and places rightly."""
