"""The torch side: operators, their gradients, and the choice of who runs."""
