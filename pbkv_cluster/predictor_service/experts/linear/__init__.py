"""The linear expert (`expert`): a situation as hashed features (`features`), their weights (`softmax_table`), and the columns
that have a class of their own in that table (`column_classes`).
"""
