"""Tests of the units; a package, so that they share `hw.bench` however pytest is started."""
