"""caseback.study"""
