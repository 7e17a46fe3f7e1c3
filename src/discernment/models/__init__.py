"""Loading models from any source, chat formatting, and cutting a model after a layer."""
