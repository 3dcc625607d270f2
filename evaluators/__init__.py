"""How we judge: scores, calibration, the gate, drift, sequential tests."""
