"""Pages and pictures that show what a run or a selection did."""
