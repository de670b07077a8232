"""A daemon that is attacked: one for all tests of this folder, ended with the last of them."""
