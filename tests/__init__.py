"""All tests, in the folders of the packages that they test; README.md says how to run them."""
