"""Measurement inside a rank: times of events, breakdown, telemetry, profiles, the device's peaks."""
