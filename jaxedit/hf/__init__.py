"""Hugging Face folders in and out: configurations, weights, tokenizers, PEFT adapters. No torch
model is built.
"""
