"""Reading a model: lenses, attribution, patching grids, heads and weights."""
