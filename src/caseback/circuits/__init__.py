"""caseback.circuits"""
