"""The page in a browser: chat, comparison, likelihoods, and what the model sees."""
