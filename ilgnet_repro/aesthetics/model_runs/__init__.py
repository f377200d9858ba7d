"""Training and testing NIMA, TANet, GSFL-Net and the attributes network on scored image sets."""
