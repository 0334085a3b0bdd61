"""Moved."""

from steerkit.material import load_material as load_material
