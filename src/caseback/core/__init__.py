"""caseback.core"""
