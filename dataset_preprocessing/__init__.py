"""Preparation of data sets: public ones as EG3D prepares them, and procedural ones with known geometry."""
