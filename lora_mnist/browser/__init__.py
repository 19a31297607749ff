"""The page with a network in it, which computes in the browser: it can be sent, and the playground serves it."""
