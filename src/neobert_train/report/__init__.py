"""report.html: what a run did, as plots in one file."""
