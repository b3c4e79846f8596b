"""vLLM's engine: what it is started with, what it is asked, and what it answers, in our words (`contract`)."""
