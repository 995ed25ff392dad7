"""How does a user's own data become a model, and more data?"""
