"""``oec serve``: studies over HTTP.

What it knows is in the home and in Ray's job API alone: it may die at any time, and several may serve one home.
"""
