"""Encoders behind one protocol; nothing outside names a network. `plan` reads the costs without torch."""
