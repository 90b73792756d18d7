"""Hugging Face / Microsoft folders: names, configs, files. Imports no model."""
