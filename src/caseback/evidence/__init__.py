"""caseback.evidence"""
