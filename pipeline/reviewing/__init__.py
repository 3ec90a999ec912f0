"""Review in the browser: which cases a person is asked about, what is recorded, and the server on loopback that asks."""
