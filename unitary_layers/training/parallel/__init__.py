"""Gradients of many machines: averaged by their thin products, in the step or by a communication hook."""
