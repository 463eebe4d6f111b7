"""An export on the Hugging Face Hub: its model card, the push, a Space that chats with it."""
