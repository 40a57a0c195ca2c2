"""Pages and notebook cells: complete, self-contained, and harmless whatever names a plan has."""

from __future__ import annotations

import re
from dataclasses import replace

import planc
from planc.draw import Sized, dot, page
from planc.draw.flow import flow_of

HOSTILE = 'plan f(x: f32[b] "<img src=x onerror=alert(1)>", param w: f32[2] "</style>$name") { return x * 2 }'


def page_of(plan: planc.Plan, *private: str) -> str:
    dims = {var.name: 64 for var in plan.dims}
    return page(plan.graph, plan.id, plan.text, Sized(plan.cost(**dims), dims, "as assumed"), private)


def test_a_page_says_what_a_plan_is() -> None:
    plan = planc.parse("plan f(x: f32[b, 3], param w: f32[3]) -> f32[b, 3] { return relu(x * w) }")
    made = page_of(plan, "x")
    assert plan.id in made
    assert "One run at b=64 (as assumed)" in made
    assert '<code>x</code> <span class="private">private</span></td><td>argument</td>' in made
    assert '<code>r</code> <span class="private">from private data</span></td><td>result</td>' in made
    assert re.search(r"<code>aten.mul</code></td><td>1</td><td>1</td><td>192</td>", made)
    assert "prefers-color-scheme: dark" in made
    assert "$" not in made
    assert "v1: f32[b, 3] = aten.relu(v0)" in made


def test_a_page_needs_nothing_else() -> None:
    made = page_of(planc.parse("plan f(x: f32[b]) { return x * 2 }"))
    assert "default-src 'none'" in made
    assert not re.findall(r"<script|<link|<img|@import|url\((?!#tip)", made)
    assert re.findall(r"https?://[^\"]*", made) == ["http://www.w3.org/2000/svg"]  # a name, never fetched


def test_hostile_names_stay_text() -> None:
    plan = planc.parse(HOSTILE)
    # No valid plan has such a name, but nothing here relies on it.
    odd = planc.Plan(replace(plan.program, graph=replace(plan.graph, name="<script>f</script>")))
    sized = Sized(plan.cost(b=1), {"b": 1})
    for made in (page_of(plan), plan._repr_html_(), page(odd.graph, "", plan.text, sized)):
        assert "<script" not in made
        assert "<img" not in made
        assert made.count("</style>") == made.count("<style>") > 0
        assert "&lt;img src=x onerror=alert(1)&gt;" in made
        assert "$name" in made


def test_what_runs_a_subplan_is_counted_by_its_nodes() -> None:
    source = "plan g(x: f32[2]) -> f32[2] { return relu(x) } plan f(x: f32[2]) { return g(g(x)) }"
    made = page_of(planc.parse(source))
    assert "<code>aten.relu</code></td><td>2</td>" in made
    assert "<td><code>call</code></td>" not in made


def test_a_cell_is_short_for_a_large_plan() -> None:
    small = planc.parse("plan f(x: f32[2]) { return relu(x) }")
    assert "<svg" in small._repr_html_()
    assert "<details>" in small._repr_html_()
    ports = ", ".join(f"param p{i}: f32[2]" for i in range(40))
    steps = "".join(f"v{i + 1} = relu(v{i}) * x\n" for i in range(200))
    large = planc.parse(f"plan f(x: f32[2], {ports}) {{ v0 = x * 2\n{steps} return v200 }}")
    assert len(large._repr_html_()) < 2000
    assert "and 28 more" in large._repr_html_()


def test_dot_marks_what_is_private() -> None:
    plan = planc.parse("plan f(x: f32[2], y: f32[2]) -> (a: f32[2], c: f32[2]) { return x * 2, y + 1 }")
    marked = [line for line in dot(plan.graph, ["y"]).splitlines() if "penwidth" in line]
    assert [re.findall(r'label="([^\\]*)', line)[0] for line in marked] == ["y", "result c"]


def test_flow_is_exact_through_calls_and_scans() -> None:
    plan = planc.parse(
        """
plan swap(a: f32[2], b: f32[2]) -> (c: f32[2], d: f32[2]) { return b * 2, a + 1 }
plan f(x: f32[2], y: f32[2], z: f32[2], w: f32[2]) -> (p: f32[2], q: f32[2], r: f32[2], s: f32[2]) {
  p, q = swap(x, y)
  plan step(a: f32[2], b: f32[2], c: f32[2]) -> (d: f32[2], e: f32[2], g: f32[2]) {
    return b + 1, b + c, c * 1
  }
  r, s, t = scan([z, z], [], [w], body=step, trips=3)
  return p, q, r, s
}
"""
    )
    assert flow_of(plan.graph) == [[1], [0], [2, 3], [2, 3]]
