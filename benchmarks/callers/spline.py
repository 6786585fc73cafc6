"""Cubic spline of a scan, a file: python spline.py IN OUT X Y Z (the factor)."""

import sys

from srlib.scans.formats import load_scan
from srlib.scans.volume import fine_grid, resample, save_scan

given, made, *factor = sys.argv[1:]
scan = load_scan(given)
save_scan(resample(scan, *fine_grid(scan, [float(f) for f in factor])), made)
