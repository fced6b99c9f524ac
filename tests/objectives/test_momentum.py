"""Momentum weights are an exponential moving average of the model's."""

import torch
from torch import nn

from blip.objectives.momentum import ema_update, momentum_copy


def test_after_k_steps_the_teacher_stands_where_the_closed_form_says():
    torch.manual_seed(0)
    student = nn.ModuleDict({"proj": nn.Linear(3, 2)})
    teacher = nn.ModuleDict({"proj": momentum_copy(student["proj"])})
    start = teacher["proj"].get_parameter("weight").clone()
    m, values = 0.9, []
    for _ in range(5):
        with torch.no_grad():
            student["proj"].get_parameter("weight").normal_()
        values.append(student["proj"].get_parameter("weight").detach().clone())
        ema_update(teacher, student, m)
    expected = m**5 * start + (1 - m) * sum(m ** (4 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(teacher["proj"].get_parameter("weight").detach(), expected)


def test_a_teacher_is_a_frozen_copy_in_evaluation_mode():
    student = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    teacher = momentum_copy(student)
    assert not teacher.training
    assert student.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert teacher.get_parameter("0.weight").data_ptr() != student.get_parameter("0.weight").data_ptr()


def test_a_teacher_without_a_part_of_the_student_follows_in_the_rest():
    student = nn.ModuleDict({"text": nn.ModuleDict({"self": nn.Linear(2, 2), "cross": nn.Linear(2, 2)})})
    teacher = nn.ModuleDict({"text": nn.ModuleDict({"self": nn.Linear(2, 2)})})
    ema_update(teacher, student, 0.0)
    assert teacher.get_parameter("text.self.weight").equal(student.get_parameter("text.self.weight"))
