"""Fits machine profiles to measured runs through the engine, and says how far it is from them."""
