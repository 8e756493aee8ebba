"""Scoring fused images over whole sets: what to score, the scores, and what they say together."""
