"""caseback.cli"""
