"""caseback.tasks"""
