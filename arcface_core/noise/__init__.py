"""Isolating noise: dominant sub-centers, rivals, calibrated probabilities, and the rules that give verdicts."""
