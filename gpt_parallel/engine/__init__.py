"""The code that runs inside a rank: connect, load, generate, measure. It imports torch and never transformers."""
