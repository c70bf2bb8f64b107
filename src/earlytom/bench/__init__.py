"""The benchmark: splits of generated clips, runs of all methods, statistics, reports."""
