"""What `generate` and `chat` share: sampling options, prompts, answers in a file, the terminal."""
