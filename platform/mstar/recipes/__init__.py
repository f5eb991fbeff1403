"""Recipes: functions that return a whole config. A variant calls another and replaces fields."""
