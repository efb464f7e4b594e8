"""caseback.model"""
