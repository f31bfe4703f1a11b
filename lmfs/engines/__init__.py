"""What runs a model: one module an engine, all with the same bits (lmfs.types.Engine)."""
