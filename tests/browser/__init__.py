"""Tests that look at pages in a browser: `make test-browser`."""
