"""Each method once more as straight lines, from its paper's formulas; nothing here may import the package."""
