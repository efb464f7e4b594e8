"""caseback.show"""
