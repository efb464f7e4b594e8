"""caseback.zoo"""
