// scenes.c - a drawn operating field with its full truth: pictures that anyone can make, labels that can be seen in them.
//
// What it is:  a small software rasteriser (distance fields with one pixel of analytic smoothing, painter's order, an
//              owner for every pixel), the anatomy of one patient per group of frames, the instruments of CholecT50 and
//              of robotic prostatectomy, and the rules that read labels off the finished picture.
// What it is not: a simulator. Nothing moves, so motion has no label; colours and shapes are typical, not measured.
// Honesty:     every label is a function of what is drawn and still visible (owner buffer) when the picture is done.
//              A draft whose labels cannot be seen (a hidden tip, a covered target) is thrown away and drawn again from
//              the next random stream. The phase follows from organs, bag, clips and instruments in view (phase_of), and
//              the truth names a second phase where a surgeon could not choose (`also`). Criteria of the critical view:
//              two tubes seen and no bundle; at least 40 % of the triangle not behind instruments and at most 20 % of
//              that under fat; the plate seen behind the gallbladder.
// Read before: surgr1.h, section data/scenes.c.  Read next: commands/scenes.c.
// Sources: vocabularies of Cholec80, CholecT50 and SAR-RARP50 (arXiv 1602.03012, 2109.03223, 2401.00496); the critical
//          view of safety (Strasberg 1995).
#include "../surgr1.h"
#include <pthread.h>

// ---------------------------------------------------------------------------------------------------------- random
enum { RANDOM_SCENE = 64 };                               // purpose of the Philox counter
enum { FIELD_PATIENT = 1, FIELD_PLAN, FIELD_DRAFT = 16 }; // which stream of a patient or a frame; drafts count up

typedef struct Random {
    uint64_t seed, stream;
    uint32_t n;
} Random;
static double uniform(Random *r) { return random_uniform(r->seed, RANDOM_SCENE, r->stream, r->n++); }
static double between(Random *r, double low, double high) { return low + (high - low) * uniform(r); }
static int pick(Random *r, int n) {
    int k = (int)(uniform(r) * n);
    return k < n ? k : n - 1;
}
static bool chance(Random *r, double p) { return uniform(r) < p; }

// ----------------------------------------------------------------------------------------------------------- noise
// Value noise: four octaves of a random lattice, smoothed and summed into one tile that repeats; read bilinearly.
enum { TILE = 256 };
static float tile[TILE][TILE];
static pthread_once_t tile_once = PTHREAD_ONCE_INIT;

static double lattice(int octave, int cells, int x, int y) {
    return 2 * random_uniform(0x5eed, RANDOM_SCENE, (uint64_t)octave, (uint32_t)((y % cells) * cells + x % cells)) - 1;
}
static double smooth(double t) { return t * t * (3 - 2 * t); }
static void tile_make(void) {
    for (int octave = 0; octave < 4; octave++) {
        int cells = 8 << octave, size = TILE / cells;
        static double v[64][64];
        for (int y = 0; y < cells; y++)
            for (int x = 0; x < cells; x++) v[y][x] = lattice(octave, cells, x, y);
        for (int y = 0; y < TILE; y++)
            for (int x = 0; x < TILE; x++) {
                int cx = x / size, cy = y / size, dx = (cx + 1) % cells, dy = (cy + 1) % cells;
                double u = smooth((double)(x % size) / size), w = smooth((double)(y % size) / size);
                double top = v[cy][cx] + u * (v[cy][dx] - v[cy][cx]), bottom = v[dy][cx] + u * (v[dy][dx] - v[dy][cx]);
                tile[y][x] += (float)((top + w * (bottom - top)) * (0.55 / (1 << octave)));
            }
    }
}
// In about [-1, 1]; one lattice cell of the lowest octave is 1/8 in x and y.
static inline double noise(double x, double y) {
    double px = x * TILE + (1 << 20), py = y * TILE + (1 << 20); // positive: truncation is the floor
    int fx = (int)px, fy = (int)py, ix = fx & (TILE - 1), iy = fy & (TILE - 1);
    int jx = (ix + 1) & (TILE - 1), jy = (iy + 1) & (TILE - 1);
    double u = px - fx, v = py - fy;
    double top = tile[iy][ix] + u * ((double)tile[iy][jx] - tile[iy][ix]);
    double bottom = tile[jy][ix] + u * ((double)tile[jy][jx] - tile[jy][ix]);
    return top + v * (bottom - top);
}

// ---------------------------------------------------------------------------------------------------------- canvas
// Coordinates: the shorter side of the picture is 1, (0.5, 0.5) its centre, y down ("view"). Anatomy lives in a frame
// of its own that the camera turns, moves and magnifies into the view.
typedef struct V {
    double x, y;
} V;
static V plus(V a, V b) { return (V){a.x + b.x, a.y + b.y}; }
static V mix(V a, V b, double t) { return (V){a.x + t * (b.x - a.x), a.y + t * (b.y - a.y)}; }
static V polar(double angle, double r) { return (V){r * cos(angle), r * sin(angle)}; }
static double distance(V a, V b) { return hypot(a.x - b.x, a.y - b.y); }

enum { MAX_TOOLS = 4 };
// Who a pixel belongs to. Tools take two numbers each: shaft and head.
enum Owner {
    NOBODY,
    CAVITY,
    LIVER,
    GALLBLADDER,
    PLATE,
    DUCT,
    ARTERY,
    PEDICLE,
    FAT,
    OMENTUM,
    GUT,
    ADHESION,
    PERITONEUM,
    FLUID,
    BAG,
    CLIP,
    PORT,
    BLADDER,
    URETHRA,
    PROSTATE,
    VEINS,
    PUBIS,
    CATHETER,
    NEEDLE,
    THREAD,
    TOOL,
    OWNERS = TOOL + 2 * MAX_TOOLS
};
_Static_assert((int)TOOL == (int)SCENE_TOOL_OWNER, "surgr1.h tells readers where the tools begin");
typedef struct OwnerInfo {
    const char *name; // of CholecT50 where it has one
    bool tissue;      // asked for as a tissue; else an object
    double least;     // visible: at least this part of the picture ...
} OwnerInfo;
enum { LEAST_SHARE_PERCENT = 25 }; // ... and of the pixels it would have with nothing in front of it
static const OwnerInfo owners[TOOL] = {
    [CAVITY] = {"abdominal_wall_cavity", true, .02},
    [LIVER] = {"liver", true, .01},
    [GALLBLADDER] = {"gallbladder", true, .006},
    [PLATE] = {"cystic_plate", true, .003},
    [DUCT] = {"cystic_duct", true, .0015},
    [ARTERY] = {"cystic_artery", true, .0015},
    [PEDICLE] = {"cystic_pedicle", true, .002},
    [FAT] = {"fat", true, .003},
    [OMENTUM] = {"omentum", true, .01},
    [GUT] = {"gut", true, .006},
    [ADHESION] = {"adhesion", true, .0015},
    [PERITONEUM] = {"peritoneum", true, .004},
    [FLUID] = {"fluid", false, .003},
    [BAG] = {"specimen_bag", false, .006},
    [CLIP] = {"clip", false, .0002},
    [PORT] = {"port", false, .002},
    [BLADDER] = {"bladder", true, .01},
    [URETHRA] = {"urethra", true, .004},
    [PROSTATE] = {"prostate", true, .01},
    [VEINS] = {"dorsal_venous_complex", true, .004},
    [PUBIS] = {"pubis", true, .01},
    [CATHETER] = {"catheter", false, .001},
    [NEEDLE] = {"suture_needle", false, .0005},
    [THREAD] = {"thread", false, .0005},
};

typedef struct Canvas {
    int w, h;
    float *rgb;                        // [h, w, 3], 0..1
    uint8_t *owner;                    // [h, w]
    int64_t drawn[OWNERS];             // pixels that went to an owner and were not its own before
    double scale, left, top;           // view -> pixels
    double cos_a, sin_a, zoom, dx, dy; // anatomy -> view
    bool anatomy;                      // which frame shapes are given in now
    double texture, bump, gloss;       // of the style
} Canvas;

static V to_view(const Canvas *c, V p) {
    double x = p.x - .5, y = p.y - .5;
    return (V){.5 + c->dx + c->zoom * (c->cos_a * x - c->sin_a * y),
               .5 + c->dy + c->zoom * (c->sin_a * x + c->cos_a * y)};
}
static V to_anatomy(const Canvas *c, V p) {
    double x = (p.x - .5 - c->dx) / c->zoom, y = (p.y - .5 - c->dy) / c->zoom;
    return (V){.5 + c->cos_a * x + c->sin_a * y, .5 - c->sin_a * x + c->cos_a * y};
}

typedef struct Material {
    double rgb[3], second[3]; // 0..255; noise mixes the two
    double vary;              // how much brightness follows the noise
    double size;              // noise cells of the lowest octave per unit, divided by 8
    double bump;              // how much the noise tilts the surface
    double shine;             // of the highlight
    int gloss;                // its exponent is 2^gloss
} Material;

// ---------------------------------------------------------------------------------------------------------- shapes
enum ShapeKind { TUBE, BLOB, POLYGON, HALF, PEAR };
enum { MAX_POINTS = 40 };
typedef struct Shape {
    enum ShapeKind kind;
    V p[MAX_POINTS];
    double r[MAX_POINTS]; // TUBE: radius at each point
    int n;
    V centre; // BLOB; HALF: a point of the edge
    double rx, ry, angle;
    double wobble, wave, phase; // BLOB: noise of the outline; HALF: amplitude, waves per unit, phase; PEAR: its bend
    double bevel;               // POLYGON, HALF: width of the rounded rim
    V hole;                     // POLYGON: an elliptic window, when hole_rx > 0
    double hole_rx, hole_ry, hole_angle;
    double flat; // 0: round like a sphere or a cylinder; 1: flat
    double far;  // set by paint: beyond this radius (BLOB) or distance (HALF) nothing is painted
    double co, si, hole_co, hole_si, inverse[MAX_POINTS]; // set by paint: of the angles; 1 / length^2 of each segment
} Shape;
typedef struct Hit {
    double d;      // signed distance to the outline, negative inside
    double nx, ny; // slope of the surface, length at most 1
} Hit;

static Shape tube(const V *p, int n, double r0, double r1) {
    Shape s = {.kind = TUBE, .n = n};
    for (int i = 0; i < n; i++) s.p[i] = p[i], s.r[i] = r0 + (r1 - r0) * i / (n > 1 ? n - 1 : 1);
    return s;
}
static Shape line(V a, V b, double r0, double r1) { return tube((V[]){a, b}, 2, r0, r1); }
static Shape blob(double x, double y, double rx, double ry, double angle, double wobble) {
    return (Shape){.kind = BLOB, .centre = {x, y}, .rx = rx, .ry = ry, .angle = angle, .wobble = wobble, .wave = 1};
}
static Shape polygon(const V *p, int n, double bevel) {
    Shape s = {.kind = POLYGON, .n = n, .bevel = bevel};
    memcpy(s.p, p, (size_t)n * sizeof *p);
    return s;
}
// A quadratic arc through a, bent towards b, to c, as a tube of n points.
static Shape curve(V a, V b, V c, double r0, double r1, int n) {
    V p[MAX_POINTS];
    for (int i = 0; i < n; i++) {
        double t = (double)i / (n - 1);
        p[i] = mix(mix(a, b, t), mix(b, c, t), t);
    }
    return tube(p, n, r0, r1);
}
static Shape arc(V centre, double radius, double from, double to, double r0, double r1, int n) {
    V p[MAX_POINTS];
    for (int i = 0; i < n; i++) p[i] = plus(centre, polar(from + (to - from) * i / (n - 1), radius));
    return tube(p, n, r0, r1);
}
static Shape moved(Shape s, double dx, double dy) {
    for (int i = 0; i < s.n; i++) s.p[i].x += dx, s.p[i].y += dy;
    s.centre.x += dx, s.centre.y += dy, s.hole.x += dx, s.hole.y += dy;
    return s;
}

static inline __attribute__((always_inline)) Hit hit_tube(const Shape *s, double x, double y) {
    double best = 1e9, bx = 0, by = 0, br = 1;
    for (int i = 0; i + 1 < s->n; i++) {
        double ax = s->p[i].x, ay = s->p[i].y, ux = s->p[i + 1].x - ax, uy = s->p[i + 1].y - ay;
        double t = ((x - ax) * ux + (y - ay) * uy) * s->inverse[i];
        t = t < 0 ? 0 : t > 1 ? 1 : t;
        double px = x - ax - t * ux, py = y - ay - t * uy, r = s->r[i] + t * (s->r[i + 1] - s->r[i]);
        double d2 = px * px + py * py, limit = best + r; // a root only where it can be the nearest
        if (limit > 0 && d2 < limit * limit) best = sqrt(d2) - r, bx = px, by = py, br = r;
    }
    return (Hit){best, bx / br, by / br};
}
static inline __attribute__((always_inline)) Hit hit_blob(const Shape *s, double x, double y) {
    double co = s->co, si = s->si, dx = x - s->centre.x, dy = y - s->centre.y;
    double lx = (co * dx + si * dy) / s->rx, ly = (-si * dx + co * dy) / s->ry, rho = sqrt(lx * lx + ly * ly);
    if (rho > s->far) return (Hit){(rho - 1) * (s->rx < s->ry ? s->rx : s->ry), co * lx - si * ly, si * lx + co * ly};
    double edge = 1 + (s->wobble > 0 ? s->wobble * noise(x * s->wave + s->phase, y * s->wave) : 0);
    double k = edge > 0 ? 1 / edge : 1;
    Hit h = {(rho - edge) * (s->rx < s->ry ? s->rx : s->ry), (co * lx - si * ly) * k, (si * lx + co * ly) * k};
    return h;
}
// A body of revolution from its round end p[0] to its neck p[1]: half widths r[0] at the belly and r[1] at the neck, the
// axis bent by `wobble` in the middle. Returns the half width at t of the way and its slope.
static inline double pear_width(const Shape *s, double t, double length, double *slope) {
    double belly = s->r[0] / length * 1.15, w = s->r[0], n = s->r[1], cap = n / length;
    if (t < belly) { // a quarter of an ellipse
        double u = (belly - t) / belly, k = sqrt(fmax(1 - u * u, 1e-4));
        *slope = w * u / (belly * length * k);
        return w * k;
    }
    if (t > 1) {
        double u = (t - 1) / cap, k = sqrt(fmax(1 - u * u, 1e-4));
        *slope = -n * u / (cap * length * k);
        return n * k;
    }
    double u = (t - belly) / (1 - belly);
    *slope = -(w - n) * 6 * u * (1 - u) / ((1 - belly) * length);
    return w - (w - n) * smooth(u);
}
static inline __attribute__((always_inline)) Hit hit_pear(const Shape *s, double x, double y) {
    double dx = s->p[1].x - s->p[0].x, dy = s->p[1].y - s->p[0].y, length = s->rx, ux = dx / length, uy = dy / length;
    double px = x - s->p[0].x, py = y - s->p[0].y, t = (px * ux + py * uy) / length, slope,
           c = t < 0   ? 0
               : t > 1 ? 1
                       : t;
    double across = py * ux - px * uy - s->wobble * 4 * c * (1 - c);
    double belly = s->r[0] / length * 1.15;
    if (t < belly || t > 1) { // the two caps: a half ellipse, a half circle
        double a = t < belly ? (t - belly) / belly : (t - 1) * length / s->r[1],
               b = across / (t < belly ? s->r[0] : s->r[1]);
        double rho = sqrt(a * a + b * b), k = rho > 1 ? 1 / rho : 1;
        return (Hit){(rho - 1) * (t < belly ? s->r[0] : s->r[1]), k * (a * ux - b * uy), k * (a * uy + b * ux)};
    }
    double w = pear_width(s, t, length, &slope), q = across / w, k = 1 / sqrt(1 + slope * slope);
    double side = q > 1 ? 1 : q < -1 ? -1 : q;
    return (Hit){(fabs(across) - w) * k, k * (-slope * ux - side * uy), k * (-slope * uy + side * ux)};
}
static inline Hit hit_polygon(const Shape *s, double x, double y) {
    double best = 1e9, bx = 0, by = 0;
    bool inside = false;
    for (int i = 0, j = s->n - 1; i < s->n; j = i++) {
        double ax = s->p[j].x, ay = s->p[j].y, ux = s->p[i].x - ax, uy = s->p[i].y - ay;
        double l2 = ux * ux + uy * uy, t = l2 > 0 ? ((x - ax) * ux + (y - ay) * uy) / l2 : 0;
        t = t < 0 ? 0 : t > 1 ? 1 : t;
        double px = x - ax - t * ux, py = y - ay - t * uy, d2 = px * px + py * py;
        if (d2 < best) best = d2, bx = px, by = py;
        if ((s->p[i].y > y) != (ay > y) && x < ux * (y - ay) / uy + ax) inside = !inside;
    }
    double d = sqrt(best), k = d > 0 ? 1 / d : 0;
    double tilt = inside ? 1 - d / s->bevel : 1;
    tilt = tilt < 0 ? 0 : tilt;
    Hit h = {inside ? -d : d, (inside ? -bx : bx) * k * tilt, (inside ? -by : by) * k * tilt};
    if (s->hole_rx > 0) {
        double co = s->hole_co, si = s->hole_si, hx = x - s->hole.x, hy = y - s->hole.y;
        double lx = (co * hx + si * hy) / s->hole_rx, ly = (-si * hx + co * hy) / s->hole_ry;
        double out = (1 - sqrt(lx * lx + ly * ly)) * s->hole_ry;
        if (out > h.d) h.d = out;
    }
    return h;
}
// Everything on the side of the edge that `angle` (of the outward normal) points away from; the edge is two sines.
static inline __attribute__((always_inline)) Hit hit_half(const Shape *s, double x, double y) {
    double co = s->co, si = s->si, dx = x - s->centre.x, dy = y - s->centre.y;
    double along = -si * dx + co * dy, out = co * dx + si * dy, most = 1.45 * fabs(s->wobble);
    if (out < -most - s->bevel) return (Hit){out, 0, 0}; // far inside the edge does not matter
    if (out > most + s->far) return (Hit){out - most, co, si};
    double f = s->wobble * (sin(s->wave * along + s->phase) + .45 * sin(2.3 * s->wave * along + 1.7 * s->phase));
    double d = out - f, tilt = 1 + d / s->bevel;
    tilt = tilt < 0 ? 0 : tilt > 1 ? 1 : tilt;
    tilt *= tilt;
    return (Hit){d * .9, co * tilt * .95, si * tilt * .95};
}
static inline __attribute__((always_inline)) Hit hit(enum ShapeKind kind, const Shape *s, double x, double y) {
    switch (kind) {
    case TUBE: return hit_tube(s, x, y);
    case BLOB: return hit_blob(s, x, y);
    case POLYGON: return hit_polygon(s, x, y);
    case PEAR: return hit_pear(s, x, y);
    default: return hit_half(s, x, y);
    }
}

typedef struct Rect {
    double x1, y1, x2, y2;
} Rect;
static Rect bounds(const Shape *s, double margin) {
    Rect b = {1e9, 1e9, -1e9, -1e9};
    for (int i = 0; i < s->n; i++) {
        double r = margin + (s->kind == TUBE ? s->r[i] : s->kind == PEAR ? s->r[0] + fabs(s->wobble) : 0);
        b.x1 = fmin(b.x1, s->p[i].x - r), b.y1 = fmin(b.y1, s->p[i].y - r);
        b.x2 = fmax(b.x2, s->p[i].x + r), b.y2 = fmax(b.y2, s->p[i].y + r);
    }
    if (s->kind == BLOB) {
        double k = 1 + s->wobble, co = cos(s->angle), si = sin(s->angle);
        double ex = k * hypot(s->rx * co, s->ry * si) + margin, ey = k * hypot(s->rx * si, s->ry * co) + margin;
        b = (Rect){s->centre.x - ex, s->centre.y - ey, s->centre.x + ex, s->centre.y + ey};
    }
    if (s->kind == HALF) b = (Rect){-30, -30, 30, 30};
    return b;
}

// How a shape meets the canvas.
typedef struct Coat {
    enum Owner owner; // NOBODY: paints without taking pixels
    double alpha;
    double soft;          // width of a soft rim, in units of the shape's frame; 0: one pixel
    bool glow;            // plain colour, no light (shadows, smoke, sparks)
    double shadow;        // how dark the shadow around it is; 0: none
    double dx, dy, reach; // where it falls, and how wide its rim is
} Coat;

static const V light = {-.32, -.48}; // of the unit vector (x, y, z)

// Pixels of a row that a tube can touch, as a range of x in the shape's frame; the row is a segment a..b of that frame.
static void row_range(const Shape *s, double margin, V a, V u, double length, double *from, double *to) {
    *from = 1e9, *to = -1e9;
    for (int i = 0; i + 1 < s->n; i++) { // in coordinates along the row and across it
        double r = margin + (s->r[i] > s->r[i + 1] ? s->r[i] : s->r[i + 1]);
        double px = s->p[i].x - a.x, py = s->p[i].y - a.y, qx = s->p[i + 1].x - a.x, qy = s->p[i + 1].y - a.y;
        double p_along = px * u.x + py * u.y, p_across = py * u.x - px * u.y;
        double q_along = qx * u.x + qy * u.y, q_across = qy * u.x - qx * u.y;
        double low = 0, high = 1, step = q_across - p_across; // the part of the segment that is within r of the row
        if (fabs(step) > 1e-12) {
            double t1 = (-r - p_across) / step, t2 = (r - p_across) / step;
            low = fmax(0, fmin(t1, t2)), high = fmin(1, fmax(t1, t2));
        } else if (fabs(p_across) > r) {
            continue;
        }
        if (low > high) continue;
        double e = p_along + low * (q_along - p_along), f = p_along + high * (q_along - p_along);
        *from = fmin(*from, fmin(e, f) - r), *to = fmax(*to, fmax(e, f) + r);
    }
    if (*from < 0) *from = 0;
    if (*to > length) *to = length;
}

// kind and glow are constants where this is called: one loop for each, without branches on them.
static inline __attribute__((always_inline)) void paint_as(Canvas *c, const Shape *shape, const Material *m, Coat coat,
                                                           enum ShapeKind kind, bool glow) {
    Shape copy = *shape, *s = &copy;
    s->co = cos(s->angle), s->si = sin(s->angle), s->hole_co = cos(s->hole_angle), s->hole_si = sin(s->hole_angle);
    for (int i = 0; kind == TUBE && i + 1 < s->n; i++) {
        double l = distance(s->p[i], s->p[i + 1]);
        s->inverse[i] = l > 0 ? 1 / (l * l) : 0;
    }
    double unit = c->scale * (c->anatomy ? c->zoom : 1); // pixels per unit of the shape's frame
    double rim = coat.soft > 0 ? coat.soft : 1 / unit;
    double sharp = 1 / rim, margin = coat.shadow > 0 ? hypot(coat.dx, coat.dy) + coat.reach * .5 : rim * .5;
    margin = (margin > rim ? margin : rim) + 1 / unit;
    s->far = kind == BLOB ? 1 + s->wobble + margin / (s->rx < s->ry ? s->rx : s->ry) : 1.2 * margin;
    Rect b = bounds(s, margin);
    V corner[4] = {{b.x1, b.y1}, {b.x2, b.y1}, {b.x1, b.y2}, {b.x2, b.y2}};
    double px1 = 1e9, py1 = 1e9, px2 = -1e9, py2 = -1e9;
    for (int i = 0; i < 4; i++) {
        V p = c->anatomy ? to_view(c, corner[i]) : corner[i];
        double x = c->left + c->scale * p.x, y = c->top + c->scale * p.y;
        px1 = fmin(px1, x), px2 = fmax(px2, x), py1 = fmin(py1, y), py2 = fmax(py2, y);
    }
    int x1 = px1 < 0 ? 0 : px1 > c->w ? c->w : (int)px1, x2 = px2 < 0 ? 0 : px2 >= c->w ? c->w : (int)px2 + 1;
    int y1 = py1 < 0 ? 0 : py1 > c->h ? c->h : (int)py1, y2 = py2 < 0 ? 0 : py2 >= c->h ? c->h : (int)py2 + 1;
    double lz = sqrt(1 - light.x * light.x - light.y * light.y), hz = lz + 1;
    double hn = 1 / sqrt(light.x * light.x + light.y * light.y + hz * hz), step = 1.0 / 256;
    double vary = m->vary * c->texture, bump = m->bump * c->bump * 8, shine = 255 * m->shine * c->gloss;
    double upright = 1 - s->flat, reach = coat.reach > 0 ? 1 / coat.reach : 0;
    V dx = {1 / c->scale, 0}, along = {1, 0};
    if (c->anatomy) dx = (V){c->cos_a / unit, -c->sin_a / unit}, along = (V){c->cos_a, -c->sin_a};
    for (int y = y1; y < y2; y++) {
        V first = {(x1 + .5 - c->left) / c->scale, (y + .5 - c->top) / c->scale};
        V p = c->anatomy ? to_anatomy(c, first) : first;
        int from = x1, to = x2;
        if (kind == TUBE) {
            double low, high;
            row_range(s, margin, p, along, (x2 - x1) / unit, &low, &high);
            if (low > high) continue;
            from = x1 + (int)(low * unit), to = x1 + (int)(high * unit) + 1;
            to = to > x2 ? x2 : to;
            p.x += dx.x * (from - x1), p.y += dx.y * (from - x1);
        }
        for (int x = from; x < to; x++, p.x += dx.x, p.y += dx.y) {
            Hit h = hit(kind, s, p.x, p.y);
            double cover = .5 - h.d * sharp;
            size_t at = (size_t)y * (size_t)c->w + (size_t)x;
            float *out = c->rgb + 3 * at;
            if (cover < 1 && coat.shadow > 0 &&
                h.d < margin) { // the same outline, moved: to first order its distance is d - n.offset
                double n = sqrt(h.nx * h.nx + h.ny * h.ny), k = n > 1e-9 ? 1 / n : 0;
                double dark = .5 - (h.d - k * (h.nx * coat.dx + h.ny * coat.dy)) * reach;
                if (dark > 0) {
                    float left = (float)(1 - coat.shadow * smooth(dark > 1 ? 1 : dark));
                    out[0] *= left, out[1] *= left, out[2] *= left;
                }
            }
            if (cover <= 0) continue;
            cover = cover > 1 ? 1 : cover;
            if (coat.soft > 0) cover = smooth(cover);
            double a = cover * coat.alpha;
            if (glow) {
                for (int k = 0; k < 3; k++) out[k] += (float)(a * (m->rgb[k] / 255 - (double)out[k]));
            } else {
                double u = p.x * m->size, v = p.y * m->size, t = vary > 0 ? noise(u, v) : 0;
                double nx = h.nx * upright, ny = h.ny * upright;
                if (bump > 0) nx += bump * (t - noise(u + step, v)), ny += bump * (t - noise(u, v + step));
                double n2 = nx * nx + ny * ny;
                if (n2 > .98) {
                    double k = sqrt(.98 / n2);
                    nx *= k, ny *= k, n2 = .98;
                }
                double nz = sqrt(1 - n2), flank = nx * light.x + ny * light.y, diffuse = flank + nz * lz;
                double bright = (.34 + .78 * (diffuse > 0 ? diffuse : 0)) * (1 + vary * t);
                double high = (flank + nz * hz) * hn;
                high = high > 0 ? high : 0;
                if (high < .75 && m->gloss > 3) high = 0; // below 0.01 of a highlight
                for (int k = 0; k < m->gloss && high > 0; k++) high *= high;
                high *= shine;
                double mixed = vary > 0 ? .5 + .9 * t : .5;
                mixed = mixed < 0 ? 0 : mixed > 1 ? 1 : mixed;
                for (int k = 0; k < 3; k++) {
                    double colour = (m->rgb[k] + mixed * (m->second[k] - m->rgb[k])) * bright + high;
                    float now = (float)(colour * (1 / 255.0));
                    out[k] = a >= 1 ? now : out[k] + (float)a * (now - out[k]);
                }
            }
            if (coat.owner && a >= .5 && c->owner[at] != coat.owner)
                c->owner[at] = (uint8_t)coat.owner, c->drawn[coat.owner]++;
        }
    }
}
static void paint(Canvas *c, const Shape *s, const Material *m, Coat coat) {
#define CASE(kind)                                                                                                     \
    case kind: coat.glow ? paint_as(c, s, m, coat, kind, true) : paint_as(c, s, m, coat, kind, false); break
    switch (s->kind) {
        CASE(TUBE);
        CASE(BLOB);
        CASE(POLYGON);
        CASE(HALF);
        CASE(PEAR);
    }
#undef CASE
}

// ------------------------------------------------------------------------------------------------------- materials
// Tissue as it looks through a laparoscope; vary, bump and shine are scaled down in the clear style.
static const Material cavity = {{150, 72, 66}, {186, 106, 92}, .42, .5, .2, .22, 4};
static const Material liver = {{116, 42, 34}, {142, 58, 45}, .22, .6, .17, .5, 5};
static const Material gallbladder = {{122, 146, 120}, {170, 170, 126}, .22, .7, .22, .75, 5};
static const Material plate = {{204, 132, 106}, {168, 90, 72}, .35, 1.3, .2, .4, 4};
static const Material duct = {{214, 196, 152}, {226, 206, 170}, .16, 2.0, .4, .6, 4};
static const Material artery = {{196, 36, 40}, {214, 62, 56}, .16, 2.0, .4, .6, 4};
static const Material fat = {{226, 182, 78}, {240, 208, 122}, .26, 1.0, .55, .5, 4};
static const Material omentum = {{214, 164, 70}, {232, 194, 110}, .28, .7, .6, .45, 4};
static const Material gut = {{218, 138, 128}, {236, 166, 150}, .18, .6, .2, .6, 5};
static const Material adhesion = {{232, 214, 186}, {240, 226, 206}, .3, 2.2, .8, .3, 3};
static const Material peritoneum = {{184, 114, 94}, {206, 144, 114}, .3, .8, .18, .5, 4};
static const Material window = {{96, 32, 28}, {122, 46, 38}, .24, .8, .3, .4, 5};
static const Material blood = {{136, 8, 10}, {160, 16, 16}, .2, .8, .12, .8, 5};
static const Material bag = {{222, 228, 236}, {240, 244, 250}, .16, .8, .42, .8, 4};
static const Material bladder = {{222, 150, 132}, {234, 176, 152}, .22, .7, .28, .6, 5};
static const Material urethra = {{206, 96, 94}, {222, 124, 112}, .2, 1.0, .3, .6, 4};
static const Material prostate = {{196, 116, 96}, {214, 144, 112}, .26, .8, .35, .55, 5};
static const Material vein = {{104, 52, 96}, {132, 70, 112}, .2, 1.8, .4, .6, 4};
static const Material bone = {{226, 196, 170}, {240, 216, 192}, .2, .7, .22, .5, 4};
static const Material rubber = {{238, 150, 40}, {244, 168, 60}, .05, 1, 0, .6, 4};
static const Material silver = {{196, 200, 208}, {214, 218, 224}, .05, 3, .1, .9, 4};
static const Material dark = {{30, 12, 12}, {30, 12, 12}, 0, 1, 0, 0, 1};
static const Material steel = {{150, 156, 164}, {172, 178, 186}, .08, 3, .1, .9, 4};
static const Material carbon = {{46, 46, 52}, {58, 58, 64}, .1, 3, .1, .55, 4};
static const Material ivory = {{226, 222, 208}, {234, 230, 216}, .06, 3, .1, .5, 4};
static const Material lumen = {{54, 8, 12}, {74, 14, 16}, .2, 1.5, .3, .1, 3};

static const char *const tool_names[2][6] = {{"grasper", "bipolar", "hook", "scissors", "clipper", "irrigator"},
                                             {"large needle driver", "monopolar curved scissors", "bipolar forceps",
                                              "prograsp forceps", "suction instrument", "clip applier"}};
enum { GRASPER, BIPOLAR, HOOK, SCISSORS, CLIPPER, IRRIGATOR };
enum { DRIVER, MONOPOLAR, FORCEPS, PROGRASP, SUCTION, APPLIER };
// The clear style: hues that no tissue has.
static const double hues[2][6][3] = {
    {{28, 214, 52}, {40, 84, 255}, {236, 32, 210}, {0, 214, 236}, {246, 246, 250}, {22, 22, 26}},
    {{236, 32, 210}, {0, 214, 236}, {40, 84, 255}, {28, 214, 52}, {22, 22, 26}, {246, 246, 250}}};

// ---------------------------------------------------------------------------------------------------------- patient
typedef struct Patient {
    Material liver, gallbladder, fat, cavity;                       // tinted
    double edge, edge_angle, edge_wave, edge_phase, edge_amplitude; // of the liver
    V fundus, body, neck, duct_end, artery_root, artery_end;
    double fundus_r, body_r, neck_r, duct_r, artery_r;
    double fat_phase;
    bool round_scope;
    double scope_r;
    double omentum_y;
    int gut_side;
    // suturing
    bool dvc; // suturing the dorsal venous complex at the prostate; else bladder to urethra
    V urethra, neck_of_bladder, dome;
    double dome_rx, dome_ry;
} Patient;

static Material tinted(Random *r, Material m, double by) {
    double all = 1 + between(r, -by, by);
    for (int k = 0; k < 3; k++) {
        double f = all * (1 + between(r, -by, by) * .5);
        m.rgb[k] = fmin(255, m.rgb[k] * f), m.second[k] = fmin(255, m.second[k] * f);
    }
    return m;
}

static Patient patient_make(uint64_t seed, int64_t number) {
    Random r = {seed, (uint64_t)number << 8 | FIELD_PATIENT, 0};
    Patient p = {0};
    p.liver = tinted(&r, liver, .1), p.gallbladder = tinted(&r, gallbladder, .1);
    p.fat = tinted(&r, fat, .06), p.cavity = tinted(&r, cavity, .1);
    p.edge = between(&r, .40, .47), p.edge_angle = between(&r, -.12, .06);
    p.edge_wave = between(&r, 3.5, 6), p.edge_phase = between(&r, 0, 6.28), p.edge_amplitude = between(&r, .012, .03);
    p.fundus = (V){between(&r, .22, .32), between(&r, .15, .22)};
    p.body = (V){p.fundus.x + between(&r, .05, .1), p.fundus.y + between(&r, .16, .2)};
    p.neck = (V){p.body.x + between(&r, .07, .1), p.body.y + between(&r, .18, .22)};
    p.duct_end = (V){p.neck.x + between(&r, .30, .36), p.neck.y + between(&r, .12, .18)};
    p.artery_root = (V){p.body.x + between(&r, .09, .11), p.body.y + between(&r, .05, .09)};
    p.artery_end = (V){p.duct_end.x + between(&r, -.01, .05), p.artery_root.y + between(&r, .0, .05)};
    p.fundus_r = between(&r, .115, .14), p.body_r = between(&r, .095, .115), p.neck_r = between(&r, .042, .052);
    p.duct_r = between(&r, .022, .027), p.artery_r = between(&r, .014, .018);
    p.fat_phase = between(&r, 0, 1);
    p.round_scope = chance(&r, .4), p.scope_r = between(&r, .53, .6);
    p.omentum_y = between(&r, .86, .93), p.gut_side = pick(&r, 2);
    p.dvc = chance(&r, .4);
    p.urethra = (V){between(&r, .44, .56), between(&r, .30, .36)};
    p.neck_of_bladder = (V){p.urethra.x + between(&r, -.05, .05), between(&r, .60, .66)};
    p.dome = (V){p.neck_of_bladder.x + between(&r, -.03, .03), between(&r, .86, .92)};
    p.dome_rx = between(&r, .38, .46), p.dome_ry = between(&r, .30, .34);
    return p;
}

// -------------------------------------------------------------------------------------------------------- the draft
typedef struct Pose {
    int class, verb, target; // of CholecT50; robotic tools leave verb and target alone
    int owner_target;        // whose pixels must stay visible, or NOBODY
    V tip;                   // view
    double angle;            // from the tip to where the shaft enters
    double open;             // half angle between the jaws
    double bend;             // of a robotic wrist
    double size;
    int side; // which way a hook or a curved jaw turns
} Pose;

enum Verb { GRASP, RETRACT, DISSECT, COAGULATE, CLIP_IT, CUT, ASPIRATE, IRRIGATE, PACK, NULL_VERB };
enum Target {
    T_GALLBLADDER,
    T_PLATE,
    T_DUCT,
    T_ARTERY,
    T_PEDICLE,
    T_VESSEL,
    T_FLUID,
    T_WALL,
    T_LIVER,
    T_ADHESION,
    T_OMENTUM,
    T_PERITONEUM,
    T_GUT,
    T_BAG,
    T_NULL
};
static const int target_owner[] = {GALLBLADDER, PLATE,    DUCT,    ARTERY,     PEDICLE, NOBODY, FLUID, CAVITY,
                                   LIVER,       ADHESION, OMENTUM, PERITONEUM, GUT,     BAG,    NOBODY};

enum Phase { PREPARATION, CALOT, CLIPPING, DISSECTION, PACKAGING, CLEANING, RETRACTION, PHASES };
static const char *const phases[PHASES] = {"Preparation",           "CalotTriangleDissection", "ClippingCutting",
                                           "GallbladderDissection", "GallbladderPackaging",    "CleaningCoagulation",
                                           "GallbladderRetraction"};
enum Action { OTHER, PICKING, POSITIONING, PUSHING, PULLING, TYING, CUTTING, RETURNING, ACTIONS };

typedef struct Draft {
    Random r;
    Patient p;
    bool natural;
    enum Phase phase;
    enum Action action;
    bool artery, pedicle, cleared, detached; // what is drawn of the three criteria
    int clips_duct, clips_artery;            // how many are on
    bool cut_duct, cut_artery;
    bool has_adhesion, has_fluid, peritoneum;
    V adhesion_a, adhesion_b, fluid_at, bag_at, port_at, specimen_at;
    int n;
    Pose tool[MAX_TOOLS];
    double smoke, blur;
    V smoke_at;
    V site, needle, held; // suturing: the stitch, the centre of the needle's circle, where the helper holds the thread
    double needle_angle;  // of its blunt end
    // where things ended up (anatomy frame)
    V neck; // of the gallbladder as drawn
} Draft;

static Coat as(enum Owner o) { return (Coat){.owner = o, .alpha = 1}; }
static Coat faint(double alpha, double soft) { return (Coat){.alpha = alpha, .soft = soft}; }
static void shade_under(Canvas *c, const Shape *s, double dx, double dy, double soft, double alpha) {
    Shape t = moved(*s, dx, dy);
    paint(c, &t, &dark, (Coat){.alpha = alpha, .soft = soft, .glow = true});
}
static void put(Canvas *c, const Shape *s, const Material *m, enum Owner o) {
    paint(c, s, m, (Coat){.owner = o, .alpha = 1, .shadow = .42, .dx = .007, .dy = .012, .reach = .05});
}

// --------------------------------------------------------------------------------------------------- cholecystectomy
// The gallbladder hangs from the liver by its bed. Detached: the lower third stands off to the left and the plate is
// bare behind it. Dissection: only the fundus still holds, the rest is lifted.
enum { ALONG = 12 };
static Shape gallbladder_shape(const Draft *d) {
    V fundus = d->p.fundus, body = d->p.body, neck = d->p.neck;
    if (d->phase == DISSECTION) body = plus(fundus, (V){.13, .07}), neck = plus(fundus, (V){.30, .17});
    else if (d->detached) neck = plus(neck, (V){-.075, .045}), body = plus(body, (V){-.02, .01});
    double length = distance(fundus, neck), back = d->p.fundus_r * .9 / length;
    Shape s = {.kind = PEAR, .n = 2, .p = {mix(fundus, neck, -back), neck}, .r = {d->p.fundus_r, d->p.neck_r}};
    double ux = (neck.x - fundus.x) / length, uy = (neck.y - fundus.y) / length;
    s.wobble = .5 * ((body.y - fundus.y) * ux - (body.x - fundus.x) * uy);
    s.rx = distance(s.p[0], s.p[1]);
    return s;
}
// Points of its axis and the half widths there.
static void gallbladder_line(const Draft *d, V p[ALONG], double r[ALONG]) {
    Shape s = gallbladder_shape(d);
    double ux = (s.p[1].x - s.p[0].x) / s.rx, uy = (s.p[1].y - s.p[0].y) / s.rx, slope;
    for (int i = 0; i < ALONG; i++) {
        double t = .15 + .85 * i / (ALONG - 1.0), bend = s.wobble * 4 * t * (1 - t);
        p[i] = plus(mix(s.p[0], s.p[1], t), (V){-uy * bend, ux * bend});
        r[i] = pear_width(&s, t, s.rx, &slope);
    }
}
static Shape bed_shape(const Draft *d) { // where the gallbladder lay; early on only its lower part is bare
    V p[5];
    double r[5], from = d->phase <= CLIPPING ? .5 : 0;
    for (int i = 0; i < 5; i++) {
        double t = from + (1 - from) * i / 4;
        p[i] = mix(mix(d->p.fundus, d->p.body, t), mix(d->p.body, d->p.neck, t), t);
        p[i].x += .055, p[i].y -= .03;
        r[i] = mix((V){d->p.fundus_r * .85, 0}, (V){d->p.neck_r * 1.3, 0}, t).x;
    }
    Shape s = tube(p, 5, 0, 0);
    memcpy(s.r, r, sizeof r);
    s.flat = .85;
    return s;
}
static Shape duct_shape(const Draft *d, double from, double to) {
    V a = d->neck, c = d->p.duct_end, b = {mix(a, c, .5).x, mix(a, c, .5).y + .035}, p[8];
    for (int i = 0; i < 8; i++) {
        double t = from + (to - from) * i / 7;
        p[i] = mix(mix(a, b, t), mix(b, c, t), t);
    }
    return tube(p, 8, d->p.duct_r, d->p.duct_r * 1.1);
}
static Shape artery_shape(const Draft *d, double from, double to) {
    V a = d->detached ? plus(d->p.artery_root, (V){-.035, .03}) : d->p.artery_root, c = d->p.artery_end;
    V b = {mix(a, c, .5).x, mix(a, c, .5).y + .05}, p[8];
    for (int i = 0; i < 8; i++) {
        double t = from + (to - from) * i / 7;
        p[i] = mix(mix(a, b, t), mix(b, c, t), t);
    }
    return tube(p, 8, d->p.artery_r, d->p.artery_r * 1.15);
}
static V along(const Shape *s, double t) {
    double f = t * (s->n - 1);
    int i = (int)f < s->n - 1 ? (int)f : s->n - 2;
    return mix(s->p[i], s->p[i + 1], f - i);
}
static void draw_clip(Canvas *c, const Shape *vessel, double t, bool natural) {
    V a = along(vessel, t - .03), b = along(vessel, t + .03), m = along(vessel, t);
    double angle = atan2(b.y - a.y, b.x - a.x) + M_PI / 2, r = vessel->r[0] + .016;
    Shape s = line(plus(m, polar(angle, r)), plus(m, polar(angle, -r)), .0125, .0125);
    static const Material violet = {{150, 120, 235}, {150, 120, 235}, 0, 1, 0, .9, 4};
    put(c, &s, natural ? &silver : &violet, CLIP);
}
// A tube with clips and, when it is divided, two ends with a gap.
static void draw_vessel(Canvas *c, const Draft *d, Shape (*shape)(const Draft *, double, double), const Material *m,
                        enum Owner o, int clips, bool divided) {
    Shape whole = shape(d, 0, 1);
    if (divided) {
        Shape a = shape(d, 0, .38), b = shape(d, .62, 1);
        put(c, &a, m, o), put(c, &b, m, o);
        V ends[2] = {along(&whole, .40), along(&whole, .60)};
        for (int k = 0; k < 2; k++) {
            Shape stump = blob(ends[k].x, ends[k].y, whole.r[0] * .8, whole.r[0] * .8, 0, 0);
            paint(c, &stump, &lumen, faint(.8, 0));
        }
    } else {
        put(c, &whole, m, o);
    }
    static const double at[] = {.26, .74, .82};
    for (int k = 0; k < clips; k++) draw_clip(c, &whole, at[k], d->natural);
}

static void draw_veins(Canvas *c, Random *r, V at, double spread, const Material *m, double alpha, int n) {
    for (int i = 0; i < n; i++) {
        V a = plus(at, (V){between(r, -spread, spread), between(r, -spread, spread)});
        double g = between(r, 0, 6.28);
        V b = plus(a, polar(g, .06)), e = plus(b, polar(g + between(r, -.8, .8), .06));
        Shape s = curve(a, b, e, .0045, .0015, 6);
        paint(c, &s, m, faint(alpha, 0));
    }
}

static void draw_cholec(Canvas *c, Draft *d) {
    Random *r = &d->r;
    const Patient *p = &d->p;
    Shape s;
    c->anatomy = true;
    // The far wall; the liver covers what is above its edge.
    s = (Shape){
        .kind = HALF, .centre = {.5, d->phase == RETRACTION ? -20 : p->edge - .17}, .angle = -M_PI / 2, .bevel = .01};
    s.flat = 1;
    paint(c, &s, &p->cavity, as(CAVITY));
    s = blob(.6, .64, .30, .16, .2, 0);
    paint(c, &s, &dark, (Coat){.alpha = .3, .soft = .12, .glow = true});
    if (d->phase == RETRACTION) { // close to the wall: the port through which the specimen leaves
        s = (Shape){.kind = HALF, .centre = {.5, .06}, .angle = M_PI / 2 + M_PI, .wobble = .02, .wave = 5, .bevel = .2};
        s.angle = M_PI / 2, s.centre.y = .10;
        shade_under(c, &s, 0, .03, .1, .4);
        paint(c, &s, &p->liver, as(LIVER));
        for (int i = 0; i < 7; i++) {
            Shape fold = curve((V){-.2, .25 + .13 * i}, (V){.5, .30 + .13 * i + between(r, -.03, .03)},
                               (V){1.2, .22 + .13 * i}, .004, .004, 8);
            paint(c, &fold, &dark, (Coat){.alpha = .25, .soft = .03, .glow = true});
        }
        s = blob(d->port_at.x, d->port_at.y, .125, .105, .2, .02);
        put(c, &s, d->natural ? &steel : &ivory, PORT);
        s = blob(d->port_at.x, d->port_at.y, .09, .075, .2, 0);
        paint(c, &s, &lumen, as(PORT));
    } else {
        // The ligament that duct and artery come from, on the right; below: gut and omentum.
        s = curve((V){p->duct_end.x + .16, p->edge - .12}, (V){p->duct_end.x + .06, (p->edge + p->duct_end.y) / 2},
                  (V){p->duct_end.x + .13, 1.1}, .10, .17, 8);
        s.flat = .35;
        put(c, &s, &peritoneum, PERITONEUM);
        int gut_right = p->gut_side;
        for (int i = 0; i < 3; i++) {
            double y = .83 + .085 * i, x0 = gut_right ? .52 : -.15, x1 = gut_right ? 1.2 : .42;
            s = curve((V){x0, y + .05}, (V){(x0 + x1) / 2, y - .09}, (V){x1, y + .02}, .07, .075, 9);
            put(c, &s, &gut, GUT);
        }
        for (int i = 0; i < 9; i++) {
            double x = gut_right ? -.15 + .09 * i : .42 + .09 * i;
            s = blob(x, p->omentum_y + .05 * sin(2.1 * i) + .01 * (i % 3), .13, .095, .3 * sin(1.3 * i), .22);
            s.wave = 1.2, s.phase = p->fat_phase + .1 * i, s.flat = .2;
            put(c, &s, &omentum, OMENTUM);
        }
        for (int i = 0; i < 4; i++)
            draw_veins(c, r, (V){gut_right ? .1 + .1 * i : .6 + .1 * i, p->omentum_y}, .06, &artery, .35, 1);
        // The liver from above.
        s = (Shape){.kind = HALF,
                    .centre = {.5, p->edge},
                    .angle = M_PI / 2 + p->edge_angle,
                    .wobble = p->edge_amplitude,
                    .wave = p->edge_wave,
                    .phase = p->edge_phase,
                    .bevel = .11};
        put(c, &s, &p->liver, LIVER);
        s = tube((V[]){plus(p->fundus, (V){.02, 0}), p->body, plus(p->neck, (V){.01, -.08})}, 3, .2, .115);
        s.r[1] = .165, s.flat = .7; // the lobe that the gallbladder hangs from
        put(c, &s, &p->liver, LIVER);
        s = curve((V){.62, -.1}, (V){.66, .12}, (V){.60, .34}, .006, .002, 7); // the fissure
        paint(c, &s, &dark, (Coat){.alpha = .3, .soft = .03, .glow = true});
        bool gone = d->phase == PACKAGING || d->phase == CLEANING;
        bool early = d->phase == PREPARATION || d->phase == CALOT || d->phase == CLIPPING;
        V line_p[ALONG];
        double line_r[ALONG];
        gallbladder_line(d, line_p, line_r);
        d->neck = line_p[ALONG - 1];
        if (early) { // the triangle: a window on the liver when it is cleared
            V tri[4] = {plus(p->artery_root, (V){-.03, -.03}), plus(p->artery_end, (V){.0, -.02}), p->duct_end,
                        plus(d->neck, (V){-.01, .03})};
            s = polygon(tri, 4, .05), s.flat = 1;
            paint(c, &s, d->cleared ? &window : &peritoneum,
                  (Coat){.owner = d->cleared ? LIVER : PERITONEUM, .alpha = 1, .soft = .04});
        }
        if (d->detached || d->phase == DISSECTION || gone) {
            s = bed_shape(d);
            paint(c, &s, &plate, as(PLATE));
            draw_veins(c, r, along(&s, .5), .06, &blood, .3, 4);
        }
        if (early) {
            // What has not been dissected is under fat and peritoneum.
            bool prepared = d->phase != PREPARATION;
            if (prepared && !d->cleared) {
                V mid = mix(mix(d->neck, p->duct_end, .45), p->artery_end, .33);
                for (int i = 0; i < 6; i++) {
                    s = blob(mid.x - .10 + .045 * i, mid.y + .035 * sin(2.0 * i), .068, .052, .6 * i, .3);
                    s.phase = p->fat_phase + .07 * i, s.wave = 1.5, s.flat = .15;
                    put(c, &s, &p->fat, FAT);
                }
            }
            if (prepared && d->pedicle) { // one bundle: nothing can be told apart in it
                static const Material bundle = {{222, 158, 96}, {198, 96, 70}, .3, 1.1, .4, .5, 4};
                V a = mix(d->neck, p->artery_root, .25), b = mix(p->duct_end, p->artery_end, .35);
                s = curve(a, plus(mix(a, b, .5), (V){0, .03}), b, .07, .085, 9);
                s.flat = .2;
                put(c, &s, &bundle, PEDICLE);
                for (int i = 0; i < 3; i++) {
                    Shape strand =
                        moved(curve(a, plus(mix(a, b, .5), (V){0, .03}), b, .006, .006, 8), 0, -.04 + .035 * i);
                    paint(c, &strand, i == 1 ? &artery : &fat, faint(.45, 0));
                }
            } else if (prepared) {
                if (d->artery) draw_vessel(c, d, artery_shape, &artery, ARTERY, d->clips_artery, d->cut_artery);
                draw_vessel(c, d, duct_shape, &duct, DUCT, d->clips_duct, d->cut_duct);
            } else { // untouched: fat over everything
                for (int i = 0; i < 11; i++) {
                    V at = mix(d->neck, mix(p->duct_end, p->artery_end, .4), (i % 6) / 5.0);
                    s = blob(at.x + .01, at.y - .045 + .075 * (i / 6) + .02 * sin(2.3 * i), .078, .06, .5 * i, .3);
                    s.phase = p->fat_phase + .09 * i, s.wave = 1.5, s.flat = .15;
                    put(c, &s, &p->fat, FAT);
                }
            }
        }
        if (d->phase == DISSECTION || gone) { // clipped stumps tell what came before
            for (int k = 0; k < 2; k++) {
                V a = k ? p->artery_end : p->duct_end, b = plus(a, (V){-.13, k ? .02 : -.035});
                Shape stump = line(a, b, k ? p->artery_r * 1.1 : p->duct_r, k ? p->artery_r : p->duct_r);
                put(c, &stump, k ? &artery : &duct, k ? ARTERY : DUCT);
                draw_clip(c, &stump, .45, d->natural), draw_clip(c, &stump, .8, d->natural);
            }
        }
        if (!gone) {
            s = gallbladder_shape(d);
            put(c, &s, &p->gallbladder, GALLBLADDER);
            draw_veins(c, r, line_p[2], .06, &artery, d->natural ? .35 : .2, 3);
        }
        if (d->phase == PREPARATION && d->peritoneum) { // a veil over neck and triangle
            s = blob(d->neck.x + .02, d->neck.y - .02, .15, .10, .5, .2), s.flat = .6;
            paint(c, &s, &peritoneum, (Coat){.owner = PERITONEUM, .alpha = .62, .soft = .02});
        }
    }
    if (d->has_adhesion) {
        for (int i = 0; i < 4; i++) {
            V o = {.016 * i - .02, .012 * (i % 2)};
            Shape strand =
                curve(plus(d->adhesion_a, o), plus(mix(d->adhesion_a, d->adhesion_b, .5), (V){o.x + .02, .01}),
                      plus(d->adhesion_b, (V){2.2 * o.x, o.y}), .0135, .0145, 7);
            put(c, &strand, &adhesion, ADHESION);
        }
    }
    if (d->has_fluid) {
        s = blob(d->fluid_at.x, d->fluid_at.y, .17, .095, -.1, .22), s.wave = .6, s.flat = .55, s.phase = p->fat_phase;
        paint(c, &s, &blood, (Coat){.owner = FLUID, .alpha = .95, .soft = .012});
        s = blob(d->fluid_at.x - .05, d->fluid_at.y - .025, .035, .009, -.2, 0);
        paint(c, &s, &silver, (Coat){.alpha = .6, .soft = .01, .glow = true});
    }
    if (d->phase == PACKAGING) { // an open bag, the gallbladder half in it
        V at = d->bag_at;
        Shape mouth = blob(at.x, at.y - .07, .175, .07, .1, .03), pouch;
        V outline[24];
        for (int i = 0; i < 14; i++) // round below, the near rim above
            outline[i] = (V){at.x - .175 * cos(M_PI * i / 13), at.y - .07 + .26 * sin(M_PI * i / 13)};
        for (int i = 0; i < 10; i++)
            outline[14 + i] =
                (V){at.x + .17 * cos(M_PI * (i + .5) / 10), at.y - .065 + .035 * sin(M_PI * (i + .5) / 10)};
        pouch = polygon(outline, 24, .09), pouch.flat = .3;
        put(c, &mouth, &bag, BAG);
        Shape inside = blob(at.x, at.y - .065, .15, .05, .1, .03);
        paint(c, &inside, &carbon, (Coat){.owner = BAG, .alpha = .55});
        s = (Shape){
            .kind = PEAR,
            .n = 2,
            .p = {{d->specimen_at.x - .02, d->specimen_at.y + .30}, {d->specimen_at.x, d->specimen_at.y - .04}}};
        s.r[0] = p->fundus_r * .8, s.r[1] = p->neck_r, s.wobble = .02, s.rx = distance(s.p[0], s.p[1]);
        put(c, &s, &p->gallbladder, GALLBLADDER);
        paint(c, &pouch, &bag, (Coat){.owner = BAG, .alpha = .86});
        Shape string =
            curve(plus(at, (V){-.175, -.07}), plus(at, (V){0, -.0}), plus(at, (V){.175, -.06}), .007, .007, 9);
        paint(c, &string, &carbon, as(BAG));
    }
    if (d->phase == RETRACTION) { // the closed bag on its way out
        V at = d->bag_at, to = d->port_at;
        Shape neck_of_bag = line(at, mix(at, to, .75), .075, .03), pouch = blob(at.x, at.y + .03, .15, .13, .4, .18);
        put(c, &neck_of_bag, &bag, BAG), put(c, &pouch, &bag, BAG);
        Shape stain = blob(at.x + .02, at.y + .05, .08, .06, .5, .2);
        paint(c, &stain, &gallbladder, faint(.35, .06));
        Shape string =
            line(plus(mix(at, to, .42), (V){-.055, -.01}), plus(mix(at, to, .42), (V){.055, .01}), .008, .008);
        paint(c, &string, &carbon, as(BAG));
    }
    if (chance(r, d->natural ? 1 : .3)) // specks of blood: stains, not pools
        for (int i = 0; i < 5; i++) {
            s = blob(between(r, .1, .9), between(r, .2, .9), between(r, .008, .03), between(r, .005, .012),
                     between(r, 0, 3), .3);
            paint(c, &s, &blood, faint(.42, .006));
        }
}

// ------------------------------------------------------------------------------------------------------ instruments
// A head is drawn in a frame of its own: the tip at 0, x towards the shaft, y to the side that `side` turns.
typedef struct Bench {
    Canvas *c;
    const Pose *t;
    enum Owner shaft, head;
    Material metal, body; // jaws; shaft
    double turn;          // extra angle of a jaw about its pivot
    V pivot;
} Bench;

static V on(const Bench *b, double x, double y) {
    y *= b->t->side;
    double turn = b->turn * b->t->side, dx = x - b->pivot.x, dy = y - b->pivot.y * b->t->side;
    x = b->pivot.x + cos(turn) * dx - sin(turn) * dy, y = b->pivot.y * b->t->side + sin(turn) * dx + cos(turn) * dy;
    double k = b->t->size, a = b->t->angle;
    return plus(b->t->tip, (V){k * (cos(a) * x - sin(a) * y), k * (sin(a) * x + cos(a) * y)});
}
static void lay(const Bench *b, const Shape *s, const Material *m, enum Owner o) {
    bool idle = b->t->verb == NULL_VERB; // an instrument that hovers throws its shadow further
    paint(
        b->c, s, m,
        (Coat){
            .owner = o, .alpha = 1, .shadow = .42, .dx = idle ? .022 : .008, .dy = idle ? .034 : .012, .reach = .035});
}
static void bar(const Bench *b, double x1, double y1, double x2, double y2, double r1, double r2, const Material *m,
                enum Owner o) {
    Shape s = line(on(b, x1, y1), on(b, x2, y2), r1 * b->t->size, r2 * b->t->size);
    lay(b, &s, m, o);
}
// A jaw from points that lie in (0 at the pivot .. 1 at the tip, thickness): mirrored for the other jaw.
static void jaw(Bench *b, double length, const double (*shape)[2], int n, double mirror, double open, double window_at,
                double window_long, double window_wide) {
    V p[16];
    b->pivot = (V){length, 0}, b->turn = -mirror * open;
    for (int i = 0; i < n; i++) p[i] = on(b, length - length * shape[i][0], mirror * shape[i][1]);
    Shape s = polygon(p, n, .012 * b->t->size);
    if (window_long > 0) {
        V a = on(b, length - length * window_at, mirror * window_wide * 1.9),
          e = on(b, length - length, mirror * window_wide * 1.9);
        s.hole = a, s.hole_angle = atan2(e.y - a.y, e.x - a.x);
        s.hole_rx = window_long * length * b->t->size, s.hole_ry = window_wide * b->t->size;
    }
    lay(b, &s, &b->metal, b->head);
    b->turn = 0, b->pivot = (V){0, 0};
}
static void teeth(Bench *b, double length, double mirror, double open, int n) { // dark ticks on the inner face
    b->pivot = (V){length, 0}, b->turn = -mirror * open;
    for (int i = 0; i < n; i++) {
        double x = length * (.08 + .75 * i / n);
        Shape s = line(on(b, x, mirror * .001), on(b, x, mirror * .010), .002, .002);
        paint(b->c, &s, &dark, faint(.6, 0));
    }
    b->turn = 0, b->pivot = (V){0, 0};
}

static void draw_tool(Canvas *c, const Draft *d, int k, bool robotic) {
    const Pose *t = &d->tool[k];
    Bench b = {.c = c, .t = t, .shaft = (enum Owner)(TOOL + 2 * k), .head = (enum Owner)(TOOL + 2 * k + 1)};
    double thick = d->natural ? 1 : 1.32, w = .030 * thick; // half the shaft
    b.metal = steel, b.body = robotic ? steel : t->class == IRRIGATOR ? steel : carbon;
    Material sleeve = ivory;
    if (!robotic && t->class == BIPOLAR) sleeve = (Material){{52, 92, 190}, {64, 110, 210}, .05, 3, .1, .5, 4};
    if (robotic && t->class == MONOPOLAR) sleeve = (Material){{112, 84, 66}, {128, 96, 74}, .1, 3, .1, .4, 4};
    if (!d->natural) {
        const double *h = hues[robotic][t->class];
        for (int i = 0; i < 3; i++) {
            b.body.rgb[i] = b.body.second[i] = h[i];
            b.metal.rgb[i] = b.metal.second[i] = fmin(255, h[i] * .85 + 40);
        }
        b.body.shine = b.metal.shine = .45;
        sleeve = b.body;
    }
    c->anatomy = false;
    // How far behind the tip the shaft begins, and on which line.
    static const double head_length[2][6] = {{.20, .20, .15, .20, .21, .02}, {.16, .19, .19, .20, .03, .18}};
    double from = head_length[robotic][t->class], y0 = 0;
    if (!robotic && t->class == HOOK) y0 = -.05;
    V wrist = on(&b, from, y0);
    double direction = t->angle + t->bend;
    Shape s = tube((V[]){wrist, plus(wrist, polar(direction, 2)), plus(wrist, polar(direction, 20))}, 3, w * t->size,
                   w * 1.25 * t->size);
    s.r[1] = s.r[2];
    lay(&b, &s, &b.body, b.shaft);
    if (robotic && t->class != SUCTION) { // the wrist: a joint disc and a clevis
        s = line(wrist, on(&b, from - .055, y0), w * .95 * t->size, w * .8 * t->size);
        lay(&b, &s, t->class == MONOPOLAR ? &sleeve : &b.metal, b.head);
        s = blob(wrist.x, wrist.y, w * .62 * t->size, w * .62 * t->size, 0, 0);
        paint(c, &s, &carbon, as(b.head));
    } else if (t->class != IRRIGATOR && !robotic) {
        V back = plus(wrist, polar(direction, .012 * t->size));
        s = line(back, plus(back, polar(direction, .018 * t->size)), w * 1.04 * t->size, w * 1.04 * t->size);
        paint(c, &s, d->natural ? &steel : &b.body, as(b.shaft));
    }
    static const double grasper_jaw[][2] = {{0, -.004}, {1, 0},      {1, .012}, {.9, .026},
                                            {.5, .037}, {.12, .034}, {0, .022}};
    static const double broad_jaw[][2] = {{0, -.004}, {1, 0},      {1.02, .022}, {.9, .042},
                                          {.5, .048}, {.15, .040}, {0, .024}};
    static const double stub_jaw[][2] = {{0, -.006}, {1, 0}, {1, .022}, {.85, .030}, {.3, .034}, {0, .028}};
    static const double blade[][2] = {{-.18, .010}, {0, -.014}, {.6, -.006}, {1, .006},
                                      {.6, .020},   {.1, .026}, {-.18, .026}};
    static const double clip_jaw[][2] = {{0, .010}, {.35, .016}, {.86, .016}, {.92, .004},
                                         {1, .004}, {1, .044},   {.5, .050},  {0, .034}};
    double open = t->open;
    int kind = robotic ? 10 + t->class : t->class;
    switch (kind) {
    case GRASPER: // fenestrated jaws
    case 10 + PROGRASP:
        bar(&b, .20, 0, .15, 0, w * .85, .024, &b.metal, b.head);
        for (int m = -1; m <= 1; m += 2) {
            if (kind == GRASPER) jaw(&b, .16, grasper_jaw, 7, m, open, .55, .27, .0085);
            else jaw(&b, .15, broad_jaw, 7, m, open, .55, .30, .0125);
            teeth(&b, .155, m, open, 7);
        }
        break;
    case BIPOLAR: // two slim curved tines behind a sleeve
    case 10 + FORCEPS:
        bar(&b, .23, 0, .165, 0, w * .95, w * .85, &sleeve, b.head);
        for (int m = -1; m <= 1; m += 2) {
            double g = open * .10 + .006;
            Shape tine =
                curve(on(&b, .165, m * .014), on(&b, .085, m * (.030 + 1.6 * g)), on(&b, 0, m * g), .0145, .0085, 9);
            for (int i = 0; i < tine.n; i++) tine.r[i] *= t->size * (d->natural ? 1 : 1.15);
            lay(&b, &tine, &b.metal, b.head);
        }
        break;
    case HOOK: { // an insulated rod with an L at its end
        bar(&b, .16, -.05, .095, -.05, w * .72, w * .6, &sleeve, b.head);
        V p[5] = {on(&b, .10, -.05), on(&b, .022, -.05), on(&b, .007, -.046), on(&b, .0, -.032), on(&b, 0, 0)};
        s = tube(p, 5, .0125 * thick * t->size, .0085 * thick * t->size);
        s.r[4] *= .75;
        lay(&b, &s, &b.metal, b.head);
        break;
    }
    case SCISSORS: // two crossing blades
    case 10 + MONOPOLAR:
        bar(&b, .20, 0, .16, 0, w * .85, .026, kind == SCISSORS ? &b.metal : &sleeve, b.head);
        for (int m = -1; m <= 1; m += 2) jaw(&b, .15, blade, 7, m, open, 0, 0, 0);
        s = blob(on(&b, .15, 0).x, on(&b, .15, 0).y, .013 * t->size, .013 * t->size, 0, 0);
        paint(c, &s, &carbon, as(b.head));
        break;
    case CLIPPER: // wide square jaws, a clip between them
    case 10 + APPLIER:
        bar(&b, .21, 0, .15, 0, w, .036, &b.metal, b.head);
        for (int m = -1; m <= 1; m += 2) jaw(&b, .16, clip_jaw, 8, m, open * .5, 0, 0, 0);
        bar(&b, .012, -.020, .012, .020, .0085, .0085, d->natural ? &silver : &carbon, b.head);
        break;
    case 10 + DRIVER: // short strong jaws
        bar(&b, .11, 0, .09, 0, w * .8, .030, &b.metal, b.head);
        for (int m = -1; m <= 1; m += 2) {
            jaw(&b, .095, stub_jaw, 6, m, open, 0, 0, 0);
            teeth(&b, .09, m, open, 5);
        }
        break;
    default: // a tube with holes: irrigator, suction
        bar(&b, .16, 0, .018, 0, w * .98, w * .86, &b.body, b.head);
        for (int i = 0; i < 4; i++) {
            V at = on(&b, .035 + .034 * i, i % 2 ? -.010 : .010);
            s = blob(at.x, at.y, .0105 * t->size, .0078 * t->size, t->angle, 0);
            paint(c, &s, d->natural ? &dark : &silver, (Coat){.owner = b.head, .alpha = 1, .glow = true});
        }
        break;
    }
}

// What an act leaves on the tissue, under the instrument.
static void draw_act_below(Canvas *c, Draft *d, const Pose *t) {
    Random *r = &d->r;
    c->anatomy = false;
    V at = t->tip;
    double away = t->angle + M_PI; // the way the shaft points
    Shape s;
    static const Material pale = {{244, 232, 206}, {244, 232, 206}, .1, 1, 0, .2, 3};
    static const Material scorched = {{92, 58, 32}, {62, 38, 24}, .4, 2, .4, .1, 2};
    static const Material water = {{190, 224, 246}, {206, 232, 250}, .1, 1, .3, 1.0, 4};
    switch (t->verb) {
    case RETRACT: // tissue drawn into a tent: bright folds run to the jaws
        for (int i = -3; i <= 3; i++) {
            double g = away + .30 * i;
            s = line(at, plus(at, polar(g, .13 + .03 * (i & 1))), .0052, .0012);
            paint(c, &s, &pale, (Coat){.alpha = .46, .glow = true});
            Shape under = moved(s, .006, .007);
            paint(c, &under, &dark, (Coat){.alpha = .22, .glow = true});
        }
        break;
    case GRASP:
        s = blob(at.x, at.y, .034, .03, t->angle, .1);
        paint(c, &s, &dark, (Coat){.alpha = .3, .soft = .02, .glow = true});
        break;
    case DISSECT: // an opened plane
        s = blob(at.x, at.y, .055, .021, t->angle + M_PI / 2 + .3, .2);
        paint(c, &s, &blood, faint(.5, .006));
        s.rx *= .72, s.ry *= .55;
        paint(c, &s, &lumen, faint(.95, .004));
        break;
    case COAGULATE: // white, charred in the middle
        s = blob(at.x, at.y, .056, .042, between(r, 0, 3), .25);
        paint(c, &s, &pale, faint(.85, .012));
        s.rx *= .45, s.ry *= .45;
        paint(c, &s, &scorched, faint(.9, .008));
        break;
    case CUT:
        s = blob(at.x, at.y, .034, .012, t->angle, 0);
        paint(c, &s, &lumen, faint(.95, .004));
        break;
    case IRRIGATE:
        s = blob(at.x + .035 * cos(away), at.y + .035 * sin(away), .095, .06, away, .3);
        paint(c, &s, &water, faint(.48, .02));
        break;
    default: break;
    }
}
// And what flies above it.
static void draw_act_above(Canvas *c, Draft *d, const Pose *t) {
    Random *r = &d->r;
    c->anatomy = false;
    double away = t->angle + M_PI;
    static const Material spark = {{255, 244, 190}, {255, 244, 190}, 0, 1, 0, 0, 1};
    static const Material drop = {{206, 232, 255}, {206, 232, 255}, 0, 1, 0, 0, 1};
    static const Material red = {{206, 20, 24}, {206, 20, 24}, 0, 1, 0, 0, 1};
    if ((t->verb == DISSECT || t->verb == CUT) && t->class == HOOK) {
        for (int i = 0; i < 7; i++) {
            double g = away + between(r, -1.6, 1.6), l = between(r, .02, .048);
            Shape s = line(plus(t->tip, polar(g, .01)), plus(t->tip, polar(g, l)), .0038, .001);
            paint(c, &s, &spark, (Coat){.alpha = .95, .glow = true});
        }
        Shape s = blob(t->tip.x, t->tip.y, .016, .016, 0, 0);
        paint(c, &s, &spark, (Coat){.alpha = .8, .soft = .014, .glow = true});
    }
    if (t->verb == IRRIGATE)
        for (int i = 0; i < 11; i++) {
            double g = away + between(r, -.5, .5), l = between(r, .012, .11);
            V at = plus(t->tip, polar(g, l));
            Shape s = blob(at.x, at.y, .0115, .0062, g, 0);
            paint(c, &s, &drop, (Coat){.alpha = .95, .glow = true});
        }
    if (t->verb == ASPIRATE)
        for (int i = 0; i < 8; i++) {
            V at = plus(t->tip, polar(away + between(r, -1.1, 1.1), between(r, .015, .06)));
            Shape s = blob(at.x, at.y, .0085, .0062, 0, 0);
            paint(c, &s, &red, (Coat){.alpha = .95, .glow = true});
        }
    if (t->verb == COAGULATE || (t->class == HOOK && t->verb == DISSECT && d->natural)) {
        static const Material smoke = {{214, 214, 220}, {214, 214, 220}, 0, 1, 0, 0, 1};
        int n = t->verb == COAGULATE ? 6 : 3;
        for (int i = 0; i < n; i++) {
            V at = plus(t->tip, (V){between(r, -.05, .05), -.03 * (i + 1) + between(r, -.02, .02)});
            double k = .022 + .011 * i;
            Shape s = blob(at.x, at.y, k, k * .8, 0, .3);
            s.wave = 1.3, s.phase = between(r, 0, 1);
            paint(c, &s, &smoke, (Coat){.alpha = .34 - .035 * i, .soft = k, .glow = true});
        }
    }
}

// ------------------------------------------------------------------------------------------------- robotic suturing
static void draw_ring(Canvas *c, V at, double rx, double ry, const Material *m, enum Owner o) {
    V p[17];
    for (int i = 0; i < 17; i++) p[i] = (V){at.x + rx * cos(2 * M_PI * i / 16), at.y + ry * sin(2 * M_PI * i / 16)};
    Shape rim = tube(p, 17, rx * .42, rx * .42), inner = blob(at.x, at.y, rx * .78, ry * .78, 0, .03);
    put(c, &rim, m, o);
    paint(c, &inner, &lumen, as(o));
}
static V stitch_site(const Patient *p) {
    return p->dvc ? (V){p->urethra.x, p->urethra.y + .12} : mix(p->urethra, p->neck_of_bladder, .5);
}
static void draw_pelvis(Canvas *c, Draft *d) {
    Random *r = &d->r;
    const Patient *p = &d->p;
    Shape s;
    c->anatomy = true;
    s = (Shape){.kind = HALF, .centre = {.5, 40}, .angle = M_PI / 2, .bevel = 1}; // everywhere
    paint(c, &s, &p->cavity, as(CAVITY));
    s = blob(.5, .36, .36, .26, 0, .15);
    paint(c, &s, &dark, (Coat){.alpha = .4, .soft = .3, .glow = true});
    for (int k = -1; k <= 1; k += 2) // fat of the side walls
        for (int i = 0; i < 6; i++) {
            s = blob(.5 + k * (.50 - .022 * (i % 2)), .18 + .14 * i, .13, .10, .4 * i, .3);
            s.phase = p->fat_phase + .13 * i, s.wave = 1.3, s.flat = .2;
            put(c, &s, &p->fat, FAT);
        }
    s = curve((V){-.1, .26}, (V){.5, -.17}, (V){1.1, .26}, .12, .12, 11); // the arch of the pubis
    put(c, &s, &bone, PUBIS);
    if (p->dvc) {
        V a = {p->urethra.x, p->urethra.y - .10}, e = {p->dome.x, p->dome.y - .24};
        for (int i = -2; i <= 2; i++) { // a fan of dark veins over the apex
            double bow = .02 * ((i & 1) ? 1 : -1);
            s = curve((V){a.x + .02 * i, a.y}, (V){a.x + .05 * i + bow, (a.y + e.y) / 2}, (V){e.x + .075 * i, e.y},
                      .021, .03, 8);
            put(c, &s, &vein, VEINS);
        }
        s = blob(p->dome.x, p->dome.y - .10, p->dome_rx * .82, p->dome_ry * .95, 0, .06), s.phase = p->fat_phase;
        put(c, &s, &prostate, PROSTATE);
        s = curve((V){p->dome.x, p->dome.y - .36}, (V){p->dome.x + .02, p->dome.y - .2}, (V){p->dome.x, p->dome.y + .1},
                  .008, .004, 7);
        paint(c, &s, &dark, (Coat){.alpha = .3, .soft = .03, .glow = true});
    } else {
        s = blob(p->dome.x, p->dome.y, p->dome_rx, p->dome_ry, 0, .05), s.phase = p->fat_phase;
        put(c, &s, &bladder, BLADDER);
        draw_veins(c, r, (V){p->dome.x - .15, p->dome.y - .05}, .1, &artery, .3, 4);
        draw_ring(c, p->neck_of_bladder, .082, .058, &bladder, BLADDER);
        s = line((V){p->urethra.x, p->urethra.y - .13}, p->urethra, .085, .075); // the stump hangs from above
        put(c, &s, &urethra, URETHRA);
        draw_ring(c, p->urethra, .066, .046, &urethra, URETHRA);
        if (d->tool[0].side > 0) { // the catheter's end shows in the stump
            s = line(p->urethra, (V){p->urethra.x + .01, p->urethra.y + .055}, .03, .026);
            put(c, &s, &rubber, CATHETER);
        }
    }
    // Stitches that are in already.
    V site = stitch_site(p);
    for (int i = 0; i < 3; i++) {
        double x = site.x + (i - 1.6) * .045 - .05;
        s = line((V){x, site.y - .045}, (V){x + .012, site.y + .045}, .0055, .0055);
        paint(c, &s, &vein, faint(.9, 0));
    }
}
static Material thread_colour(bool natural) {
    return natural ? (Material){{70, 40, 110}, {90, 56, 130}, .05, 1, 0, .5, 3}
                   : (Material){{24, 24, 150}, {24, 24, 150}, 0, 1, 0, .3, 3};
}
static void draw_thread(Canvas *c, const V *p, int n, bool natural) {
    Shape s = tube(p, n, natural ? .0055 : .0085, natural ? .0055 : .0085);
    Material m = thread_colour(natural);
    shade_under(c, &s, .006, .009, .012, .3);
    paint(c, &s, &m, as(THREAD));
}
static void slack(Canvas *c, V a, V b, double sag, bool natural) { // a thread that lies in waves
    V p[25];
    double dx = b.x - a.x, dy = b.y - a.y;
    for (int i = 0; i < 25; i++) {
        double t = i / 24.0, s = sag * sin(M_PI * t) * sin(9.0 * t);
        p[i] = (V){a.x + t * dx - s * dy * 3, a.y + t * dy + s * dx * 3 + .06 * sin(M_PI * t)};
    }
    draw_thread(c, p, 25, natural);
}
static void taut(Canvas *c, V a, V b, bool natural) { draw_thread(c, (V[]){a, b}, 2, natural); }
// A half circle from `from` to `to` of its angle, in the view.
static void draw_needle(Canvas *c, V centre, double radius, double from, double to, bool natural, bool point_last) {
    Shape s = arc(centre, radius, from, to, .0078, .0078, 14);
    if (!natural)
        for (int i = 0; i < s.n; i++) s.r[i] = .0115;
    for (int i = 0; i < 4; i++) s.r[point_last ? s.n - 1 - i : i] *= .4 + .15 * i; // sharp at its point
    static const Material bright = {{246, 240, 120}, {246, 240, 120}, 0, 1, 0, .8, 4};
    shade_under(c, &s, .007, .01, .015, .4);
    paint(c, &s, natural ? &silver : &bright, as(NEEDLE));
}

// ------------------------------------------------------------------------------------------------------ composition
static int bank_of(int instrument, int verb, int target) {
    for (int i = 0; i < 100; i++)
        if (cholect50_triplets[i][0] == instrument && cholect50_triplets[i][1] == verb &&
            cholect50_triplets[i][2] == target)
            return i;
    return -1;
}

typedef struct Act {
    int class, verb, target, weight;
} Act;
static const Act *act_of(Random *r, const Act *acts, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += acts[i].weight;
    int k = pick(r, sum);
    for (int i = 0; i < n; i++)
        if ((k -= acts[i].weight) < 0) return &acts[i];
    return acts;
}
#define ACT(acts) act_of(&d->r, acts, (int)(sizeof acts / sizeof *acts))

// Where an act of the target can be set, in the anatomy frame.
static V anchor(Draft *d, int class, int verb, int target) {
    Random *r = &d->r;
    const Patient *p = &d->p;
    V line_p[ALONG];
    double line_r[ALONG];
    gallbladder_line(d, line_p, line_r);
    d->neck = line_p[ALONG - 1];
    Shape s;
    switch (target) {
    case T_GALLBLADDER: {
        if (verb == PACK) return plus(d->specimen_at, (V){between(r, -.03, .03), between(r, -.07, -.03)});
        bool lifted = d->phase == DISSECTION;
        if (verb == DISSECT || verb == COAGULATE) { // at the border to its bed
            int i = lifted ? 4 + pick(r, 5) : 6 + pick(r, 4);
            return plus(line_p[i], (V){.62 * line_r[i], lifted ? .7 * line_r[i] : -.2 * line_r[i]});
        }
        int fundus = pick(r, 3), pouch = 7 + pick(r, 3);
        int i = lifted ? 8 + pick(r, 3) : class != GRASPER ? 4 + pick(r, 4) : chance(r, .5) ? fundus : pouch;
        return plus(line_p[i], (V){between(r, -.5, .3) * line_r[i], between(r, -.4, .4) * line_r[i]});
    }
    case T_PLATE:
        s = bed_shape(d);
        if (d->phase == DISSECTION || d->phase == CLEANING || d->phase == PACKAGING)
            return plus(along(&s, between(r, .45, .9)), (V){between(r, -.02, .02), between(r, -.02, .02)});
        return plus(along(&s, between(r, .4, .9)), (V){.02, 0});
    case T_DUCT:
        s = duct_shape(d, 0, 1);
        return along(&s, verb == CUT ? .5 : verb == CLIP_IT ? between(r, .45, .6) : between(r, .3, .7));
    case T_ARTERY:
        s = artery_shape(d, 0, 1);
        return along(&s, verb == CUT ? .5 : verb == CLIP_IT ? between(r, .45, .6) : between(r, .3, .7));
    case T_PEDICLE:
        return plus(mix(mix(d->neck, p->artery_root, .25), mix(p->duct_end, p->artery_end, .35), between(r, .25, .75)),
                    (V){0, .015});
    case T_LIVER:
        if (d->phase == CLEANING || d->phase == DISSECTION)
            return (V){between(r, .56, .82), p->edge - between(r, .06, .18)};
        return (V){between(r, .55, .9), p->edge - between(r, .0, .14)};
    case T_OMENTUM:
        return (V){p->gut_side ? between(r, .1, .42) : between(r, .58, .9), p->omentum_y - between(r, .0, .05)};
    case T_GUT: return (V){p->gut_side ? between(r, .62, .9) : between(r, .08, .32), between(r, .84, .9)};
    case T_ADHESION: return plus(mix(d->adhesion_a, d->adhesion_b, between(r, .35, .65)), (V){.01, 0});
    case T_PERITONEUM: return plus(d->neck, (V){between(r, -.05, .08), between(r, -.06, .03)});
    case T_FLUID: return plus(d->fluid_at, (V){between(r, -.08, .08), between(r, -.04, .03)});
    case T_BAG:
        if (d->phase == RETRACTION) return plus(d->bag_at, (V){between(r, -.08, .08), between(r, -.03, .08)});
        return plus(d->bag_at,
                    (V){chance(r, .5) ? between(r, -.16, -.11) : between(r, .11, .16), between(r, -.06, -.02)});
    case T_WALL: return (V){between(r, .3, .85), between(r, .60, .74)};
    default: return (V){between(r, .2, .8), between(r, .25, .8)};
    }
}

static void add_tool(Draft *d, const Canvas *c, int class, int verb, int target) {
    Random *r = &d->r;
    if (d->n == MAX_TOOLS) return;
    Pose *t = &d->tool[d->n++];
    t->class = class, t->verb = verb, t->target = target, t->owner_target = target_owner[target];
    t->tip = to_view(c, anchor(d, class, verb, target));
    t->size = between(r, .92, 1.12), t->side = chance(r, .5) ? 1 : -1;
    bool closed = verb == GRASP || verb == RETRACT || verb == PACK;
    t->open = closed ? .05 : verb == NULL_VERB ? between(r, .22, .36) : verb == CLIP_IT ? .16 : between(r, .14, .24);
    // The jaws go round what they clip or cut.
    t->angle = 0;
}
// Directions that shafts come from, far enough apart; the first helper comes from the left as an assistant's does.
static void set_directions(Draft *d) {
    static const double sector[4][2] = {{2.35, 3.55}, {-.45, .75}, {1.05, 2.0}, {-1.25, -.6}};
    int used = 0;
    for (int k = 0; k < d->n; k++) {
        Pose *t = &d->tool[k];
        int s = t->tip.x < .42 && chance(&d->r, .75) ? 0 : 1;
        if (t->tip.y > .7 && chance(&d->r, .4)) s = 2;
        for (int tries = 0; used >> s & 1 && tries < 4; tries++) s = (s + 1) % 4;
        used |= 1 << s;
        t->angle = between(&d->r, sector[s][0], sector[s][1]);
        if (t->verb == CLIP_IT || t->verb == CUT) t->tip = plus(t->tip, polar(t->angle + M_PI, .025));
    }
}

// What hands do in each phase, with weights: the first hand, then the others.
// clang-format off
static const Act prep_hold[] = {
    {GRASPER, RETRACT, T_GALLBLADDER, 28}, {GRASPER, GRASP, T_GALLBLADDER, 20}, {GRASPER, RETRACT, T_OMENTUM, 13},
    {GRASPER, GRASP, T_OMENTUM, 7}, {GRASPER, RETRACT, T_GUT, 16}, {GRASPER, GRASP, T_GUT, 10}, {GRASPER, NULL_VERB, T_NULL, 6}};
static const Act prep_work[] = {
    {SCISSORS, CUT, T_ADHESION, 18}, {BIPOLAR, DISSECT, T_ADHESION, 9}, {HOOK, DISSECT, T_OMENTUM, 6}, {IRRIGATOR, RETRACT, T_LIVER, 8},
    {GRASPER, RETRACT, T_LIVER, 6}, {BIPOLAR, COAGULATE, T_OMENTUM, 6}, {HOOK, CUT, T_PERITONEUM, 28}, {GRASPER, GRASP, T_PERITONEUM, 18},
    {SCISSORS, CUT, T_PERITONEUM, 8}, {IRRIGATOR, NULL_VERB, T_NULL, 5}, {BIPOLAR, NULL_VERB, T_NULL, 4}};
static const Act calot_hold[] = {
    {GRASPER, RETRACT, T_GALLBLADDER, 60}, {GRASPER, GRASP, T_GALLBLADDER, 12}, {GRASPER, RETRACT, T_LIVER, 5}};
static const Act calot_work[] = {
    {HOOK, DISSECT, T_DUCT, 20}, {HOOK, DISSECT, T_ARTERY, 16}, {HOOK, DISSECT, T_GALLBLADDER, 8}, {BIPOLAR, DISSECT, T_DUCT, 8},
    {BIPOLAR, DISSECT, T_ARTERY, 6}, {GRASPER, GRASP, T_DUCT, 4}, {HOOK, DISSECT, T_PLATE, 6}, {BIPOLAR, COAGULATE, T_LIVER, 4},
    {IRRIGATOR, DISSECT, T_DUCT, 5}, {SCISSORS, DISSECT, T_GALLBLADDER, 6}, {HOOK, NULL_VERB, T_NULL, 6}, {IRRIGATOR, RETRACT, T_LIVER, 5}};
static const Act pedicle_work[] = { // while nothing can be told apart
    {BIPOLAR, COAGULATE, T_PEDICLE, 3}, {HOOK, COAGULATE, T_PEDICLE, 3}, {IRRIGATOR, DISSECT, T_PEDICLE, 3}, {GRASPER, RETRACT, T_PEDICLE, 2}};
static const Act clip_work[] = {
    {CLIPPER, CLIP_IT, T_DUCT, 30}, {CLIPPER, CLIP_IT, T_ARTERY, 26}, {SCISSORS, CUT, T_DUCT, 18}, {SCISSORS, CUT, T_ARTERY, 16},
    {CLIPPER, NULL_VERB, T_NULL, 8}};
static const Act clip_more[] = {
    {GRASPER, RETRACT, T_GALLBLADDER, 60}, {GRASPER, GRASP, T_GALLBLADDER, 10}, {IRRIGATOR, RETRACT, T_LIVER, 14},
    {HOOK, NULL_VERB, T_NULL, 6}, {GRASPER, NULL_VERB, T_NULL, 6}};
static const Act off_work[] = {
    {HOOK, DISSECT, T_GALLBLADDER, 34}, {HOOK, DISSECT, T_PLATE, 14}, {BIPOLAR, COAGULATE, T_LIVER, 12}, {BIPOLAR, COAGULATE, T_PLATE, 8},
    {SCISSORS, DISSECT, T_GALLBLADDER, 12}, {HOOK, COAGULATE, T_PLATE, 6}, {IRRIGATOR, DISSECT, T_GALLBLADDER, 6}, {HOOK, NULL_VERB, T_NULL, 5}};
static const Act off_hold[] = {
    {GRASPER, RETRACT, T_GALLBLADDER, 60}, {GRASPER, GRASP, T_GALLBLADDER, 14}, {IRRIGATOR, RETRACT, T_LIVER, 8}, {GRASPER, RETRACT, T_LIVER, 8}};
static const Act bag_work[] = {{GRASPER, PACK, T_GALLBLADDER, 55}, {GRASPER, GRASP, T_BAG, 22}, {BIPOLAR, GRASP, T_BAG, 16}};
static const Act bag_more[] = {
    {GRASPER, GRASP, T_BAG, 40}, {BIPOLAR, GRASP, T_BAG, 24}, {IRRIGATOR, NULL_VERB, T_NULL, 14}, {GRASPER, NULL_VERB, T_NULL, 10}};
static const Act wash_work[] = {
    {IRRIGATOR, ASPIRATE, T_FLUID, 34}, {IRRIGATOR, IRRIGATE, T_LIVER, 14}, {IRRIGATOR, IRRIGATE, T_WALL, 18},
    {BIPOLAR, COAGULATE, T_LIVER, 20}, {BIPOLAR, COAGULATE, T_PLATE, 10}};
static const Act wash_more[] = {
    {GRASPER, RETRACT, T_LIVER, 24}, {GRASPER, RETRACT, T_OMENTUM, 24}, {BIPOLAR, COAGULATE, T_LIVER, 14}, {GRASPER, NULL_VERB, T_NULL, 14},
    {IRRIGATOR, ASPIRATE, T_FLUID, 10}};
static const Act out_work[] = {{GRASPER, GRASP, T_BAG, 64}, {BIPOLAR, GRASP, T_BAG, 20}};
static const Act out_more[] = {
    {GRASPER, GRASP, T_BAG, 40}, {BIPOLAR, GRASP, T_BAG, 16}, {IRRIGATOR, NULL_VERB, T_NULL, 26}, {SCISSORS, NULL_VERB, T_NULL, 14},
    {GRASPER, NULL_VERB, T_NULL, 6}};
// clang-format on

static void compose_cholec(Draft *d, Canvas *c, bool empty) {
    Random *r = &d->r;
    const Patient *p = &d->p;
    Random plan = {r->seed, (r->stream & ~(uint64_t)255) | FIELD_PLAN,
                   0}; // the same for every draft: no label is favoured
    d->phase = empty ? PREPARATION : (enum Phase)pick(&plan, PHASES);
    static const double counts[PHASES][4] = {{.16, .30, .36, .18}, {0, .22, .48, .30}, {0, .25, .47, .28},
                                             {.02, .28, .45, .25}, {0, .45, .40, .15}, {.02, .42, .38, .18},
                                             {0, .55, .36, .09}};
    double u = uniform(&plan);
    int n = 0;
    while (n < 3 && u >= counts[d->phase][n]) u -= counts[d->phase][n++];
    if (empty) n = 0;
    d->cleared = chance(&plan, .84), d->detached = chance(&plan, .84), d->artery = chance(&plan, .8);
    d->pedicle = !d->artery && chance(&plan, .8); // no artery: a bundle, or one that was not found
    if (d->pedicle) d->cleared = false;
    d->peritoneum = chance(&plan, .85);
    d->adhesion_a = plus(p->body, (V){between(r, .05, .09), between(r, .05, .09)});
    d->adhesion_b = (V){d->adhesion_a.x + between(r, -.05, .12), p->omentum_y - between(r, .02, .05)};
    d->fluid_at = (V){between(r, .35, .65), between(r, .62, .72)};
    d->bag_at = (V){between(r, .40, .62), between(r, .66, .72)};
    d->specimen_at = plus(d->bag_at, (V){between(r, -.05, .05), between(r, -.20, -.15)});
    d->port_at = (V){between(r, .35, .65), between(r, .22, .30)};
    if (d->phase != CALOT && d->phase != CLIPPING) { d->detached = d->cleared = d->pedicle = false; }
    if (d->phase == RETRACTION) d->bag_at = (V){d->port_at.x + between(r, -.12, .12), between(r, .58, .66)};

    if (d->phase == CLIPPING) { // clips that are on before this act
        d->clips_duct = pick(r, 3), d->clips_artery = d->artery ? pick(r, 3) : 0;
        if (d->pedicle) d->clips_duct = d->clips_artery = 0;
    }
    d->has_fluid = d->phase == CLEANING && chance(r, .5);
    const Act *chosen[MAX_TOOLS];
    for (int k = 0; k < n; k++) {
        const Act *a = NULL;
        bool work = k == 0 ? chance(r, .72) : k == 1;
        if (k == 1 && chosen[0] && d->phase != PACKAGING) work = chosen[0]->class == GRASPER;
        switch (d->phase) {
        case PREPARATION: a = k == 0 ? ACT(prep_hold) : ACT(prep_work); break;
        case CALOT: a = work ? ACT(calot_work) : ACT(calot_hold); break;
        case CLIPPING: a = k == 0 ? ACT(clip_work) : ACT(clip_more); break;
        case DISSECTION: a = work ? ACT(off_work) : ACT(off_hold); break;
        case PACKAGING: a = k == 0 ? ACT(bag_work) : ACT(bag_more); break;
        case CLEANING: a = k == 0 ? ACT(wash_work) : ACT(wash_more); break;
        default: a = k == 0 ? ACT(out_work) : ACT(out_more); break;
        }
        // An act needs its target in the field; two of one hand do not do the same.
        bool possible = !(a->target == T_PEDICLE && !d->pedicle) &&
                        !((a->target == T_DUCT || a->target == T_ARTERY) && d->pedicle) &&
                        !(a->target == T_ARTERY && !d->artery) &&
                        !(a->target == T_PLATE && !d->detached && d->phase == CALOT) &&
                        !(a->target == T_PERITONEUM && !d->peritoneum);
        for (int i = 0; i < k; i++)
            possible = possible && !(chosen[i]->target == a->target && chosen[i]->verb == a->verb &&
                                     a->verb != NULL_VERB && d->phase != CALOT);
        if (!possible && d->phase == CLIPPING && k == 0) { // a bundle is clipped as it is, if at all
            static const Act bundle = {CLIPPER, CLIP_IT, T_PEDICLE, 1}, idle = {CLIPPER, NULL_VERB, T_NULL, 1};
            a = d->pedicle ? &bundle : &idle;
        } else if (!possible && d->pedicle) {
            a = ACT(pedicle_work);
        } else if (!possible) {
            static const Act rest[] = {{GRASPER, RETRACT, T_GALLBLADDER, 1}, {GRASPER, NULL_VERB, T_NULL, 1}};
            bool has = d->phase < PACKAGING;
            for (int i = 0; i < k; i++) has = has && chosen[i]->target != T_GALLBLADDER;
            a = has ? &rest[0] : &rest[1];
        }
        if (d->phase == CLIPPING && a->verb == CUT) {
            if (a->target == T_DUCT) d->clips_duct = 3, d->cut_duct = true;
            else d->clips_artery = 3, d->cut_artery = true;
        }
        if (a->target == T_ADHESION) d->has_adhesion = true;
        if (a->target == T_FLUID) d->has_fluid = true;
        chosen[k] = a;
    }
    if (d->phase == PREPARATION && chance(r, .2)) d->has_adhesion = true;
    if (d->phase == CLIPPING && n == 0) d->clips_duct = 2;
    for (int k = 0; k < n; k++) add_tool(d, c, chosen[k]->class, chosen[k]->verb, chosen[k]->target);
    set_directions(d);
}

// Suturing: where the hands are follows from the act.
static void robotic(Draft *d, int class, V tip, double angle, double open) {
    Pose *t = &d->tool[d->n++];
    *t = (Pose){.class = class, .verb = GRASP, .target = T_NULL, .tip = tip, .angle = angle, .open = open};
    t->bend = between(&d->r, -.45, .45), t->size = between(&d->r, .95, 1.15), t->side = chance(&d->r, .5) ? 1 : -1;
}
static void compose_suturing(Draft *d, Canvas *c, bool empty) {
    Random *r = &d->r;
    V site = to_view(c, stitch_site(&d->p));
    Random plan = {r->seed, (r->stream & ~(uint64_t)255) | FIELD_PLAN, 0};
    d->action = empty ? OTHER : (enum Action)pick(&plan, ACTIONS);
    bool second_hand = chance(&plan, .62) && !empty, third_hand = chance(&plan, .45);
    site = plus(site, (V){between(r, -.05, .05), between(r, -.02, .03)});
    d->site = site;
    double right = between(r, -.2, .7), left = between(r, 2.5, 3.4), shift = between(r, .0, .05);
    int helper = (const int[]){FORCEPS, DRIVER, PROGRASP}[pick(r, 3)];
    V left_tip = plus(site, (V){-between(r, .17, .24), between(r, -.06, .1)});
    d->held = left_tip; // where a held thread ends
    double radius = .078;
    switch (d->action) {
    case PICKING: { // the needle lies free; open jaws come to it
        V centre = plus(site, (V){between(r, -.02, .16), between(r, .10, .17)});
        double a0 = between(r, 0, 6.28);
        d->needle = centre, d->needle_angle = a0;
        robotic(d, DRIVER, plus(centre, polar(a0 + M_PI * .5, radius * .86)), right, .30);
        break;
    }
    case POSITIONING: { // held behind the middle, the point short of the tissue
        V point = plus(site, (V){.035 + shift, -.03});
        double a0 = between(r, -.35, .35);
        d->needle = plus(point, polar(a0 - M_PI, -radius)), d->needle_angle = a0;
        robotic(d, DRIVER, plus(d->needle, polar(a0 - M_PI * .28, radius)), right, .06);
        break;
    }
    case PUSHING: { // held at the blunt end, the point inside
        double a0 = between(r, -.35, .35);
        d->needle = plus(site, polar(a0 - M_PI * .55, -radius)), d->needle_angle = a0;
        robotic(d, DRIVER, plus(d->needle, polar(a0 - M_PI * .06, radius)), right, .06);
        break;
    }
    case PULLING: { // held near the point, the thread follows tight
        double a0 = between(r, 2.6, 3.3);
        d->needle = plus(site, polar(a0 - M_PI * .4, -radius)), d->needle_angle = a0;
        robotic(d, DRIVER, plus(d->needle, polar(a0 - M_PI * .88, radius)), right - .3, .06);
        break;
    }
    case TYING:
        robotic(d, DRIVER, plus(site, (V){between(r, .12, .19), between(r, -.1, .05)}), right, .06);
        helper = DRIVER;
        break;
    case CUTTING: robotic(d, MONOPOLAR, plus(mix(site, left_tip, .5), polar(right + M_PI, .03)), right, .24); break;
    case RETURNING: { // let go at the port
        V port = {between(r, .76, .86), between(r, .2, .74)};
        d->port_at = port;
        double a0 = between(r, 0, 6.28);
        d->needle = plus(port, (V){-.03, .01}), d->needle_angle = a0;
        V tip = plus(d->needle, (V){-.12, between(r, -.03, .05)});
        robotic(d, DRIVER, tip, between(r, 1.1, 1.9), .42);
        break;
    }
    default: { // no needle at all
        int k = pick(r, 4);
        V at = plus(site, (V){between(r, .06, .2), between(r, -.05, .15)});
        robotic(d, (const int[]){SUCTION, DRIVER, APPLIER, MONOPOLAR}[k], at, right, between(r, .1, .3));
        d->tool[0].verb = NULL_VERB;
    }
    }
    bool second = d->action == TYING || d->action == CUTTING || d->action == PULLING || second_hand;
    if (second) {
        bool on_thread = d->action == TYING || d->action == CUTTING || d->action == PULLING;
        V idle = {between(r, .1, .5), between(r, .12, .85)};
        robotic(d, helper, on_thread ? left_tip : idle, left, on_thread ? .05 : between(r, .1, .3));
        if (!on_thread) d->tool[1].verb = NULL_VERB;
        if (third_hand) {
            bool above = chance(r, .3); // of the field or below it
            V at = {above ? between(r, .3, .94) : between(r, .15, .92),
                    above ? between(r, .08, .3) : between(r, .7, .9)};
            robotic(d, (const int[]){SUCTION, APPLIER, PROGRASP}[pick(r, 3)], at,
                    above ? between(r, -1.9, -1.2) : between(r, 1.0, 2.1), between(r, .1, .3));
            d->tool[2].verb = NULL_VERB;
        }
    }
}

static void draw_suture(Canvas *c, Draft *d) {
    V site = d->site, at = d->needle, far = {.08, 1.02};
    double a0 = d->needle_angle, radius = .078;
    bool nat = d->natural;
    c->anatomy = false;
    Shape hole = blob(site.x, site.y, .017, .011, 0, 0);
    V blunt = plus(at, polar(a0, radius));
    switch (d->action) {
    case PICKING:
        slack(c, blunt, far, .03, nat);
        draw_needle(c, at, radius, a0, a0 + M_PI, nat, true);
        break;
    case POSITIONING:
        slack(c, blunt, (V){1.02, .95}, .03, nat);
        draw_needle(c, at, radius, a0, a0 - M_PI, nat, true);
        break;
    case PUSHING:
        slack(c, blunt, (V){1.02, .92}, .035, nat);
        draw_needle(c, at, radius, a0, a0 - M_PI * .55, nat, false);
        paint(c, &hole, &lumen, faint(.9, .006));
        break;
    case PULLING:
        taut(c, site, d->held, nat);
        paint(c, &hole, &lumen, faint(.9, .006));
        draw_needle(c, at, radius, a0 - M_PI * .4, a0 - M_PI, nat, true);
        break;
    case TYING: {
        V tip = d->tool[0].tip, back = plus(tip, polar(d->tool[0].angle, .045));
        taut(c, site, d->held, nat), taut(c, site, tip, nat);
        V loop[17];
        for (int i = 0; i < 17; i++)
            loop[i] = (V){back.x + .036 * cos(2 * M_PI * i / 16) * .7, back.y + .062 * sin(2 * M_PI * i / 16)};
        draw_thread(c, loop, 17, nat);
        break;
    }
    case CUTTING: taut(c, site, d->held, nat); break;
    case RETURNING: {
        Shape ring = blob(d->port_at.x, d->port_at.y, .115, .125, 0, 0);
        put(c, &ring, nat ? &steel : &ivory, PORT);
        ring = blob(d->port_at.x, d->port_at.y, .085, .093, 0, 0);
        paint(c, &ring, &lumen, as(PORT));
        slack(c, blunt, far, .03, nat);
        draw_needle(c, at, radius * .9, a0, a0 + M_PI, nat, true);
        break;
    }
    default: break;
    }
}
// The loop of a knot lies over the jaws.
static void draw_suture_above(Canvas *c, Draft *d) {
    if (d->action != TYING) return;
    c->anatomy = false;
    V back = plus(d->tool[0].tip, polar(d->tool[0].angle, .045)), loop[9];
    for (int i = 0; i < 9; i++)
        loop[i] = (V){back.x + .036 * .7 * cos(M_PI * i / 8), back.y + .062 * sin(M_PI * i / 8)};
    draw_thread(c, loop, 9, d->natural);
}

// --------------------------------------------------------------------------------------------------------- the lens
static void blur(Canvas *c, int radius) { // a box, along rows and then along columns
    size_t n = (size_t)c->w * (size_t)c->h * 3;
    float *from = alloc_or_die(n, sizeof *from, "a blurred picture");
    for (int pass = 0; pass < 2; pass++) {
        memcpy(from, c->rgb, n * sizeof *from);
        for (int y = 0; y < c->h; y++)
            for (int x = 0; x < c->w; x++)
                for (int k = 0; k < 3; k++) {
                    double sum = 0;
                    for (int i = -radius; i <= radius; i++) {
                        int px = pass ? x : x + i, py = pass ? y + i : y;
                        px = px < 0 ? 0 : px >= c->w ? c->w - 1 : px, py = py < 0 ? 0 : py >= c->h ? c->h - 1 : py;
                        sum += (double)from[3 * ((size_t)py * (size_t)c->w + (size_t)px) + (size_t)k];
                    }
                    c->rgb[3 * ((size_t)y * (size_t)c->w + (size_t)x) + (size_t)k] = (float)(sum / (2 * radius + 1));
                }
    }
    free(from);
}

static void finish(Canvas *c, const Draft *d, uint8_t *out) {
    static const Material haze = {{206, 206, 210}, {206, 206, 210}, 0, 1, 0, 0, 1};
    if (d->smoke > 0) {
        c->anatomy = false;
        Shape s = blob(d->smoke_at.x, d->smoke_at.y, .6, .5, 0, .6);
        s.wave = .6, s.phase = d->p.fat_phase;
        paint(c, &s, &haze, (Coat){.alpha = d->smoke, .soft = .5, .glow = true});
    }
    int radius = (int)(d->blur * c->scale + .5);
    if (radius > 0) blur(c, radius);
    double fall = d->natural ? .55 : .22;
    for (int y = 0; y < c->h; y++)
        for (int x = 0; x < c->w; x++) {
            size_t at = (size_t)y * (size_t)c->w + (size_t)x;
            double dx = (x + .5 - c->left) / c->scale - .5, dy = (y + .5 - c->top) / c->scale - .5,
                   r = sqrt(dx * dx + dy * dy);
            double t = (r - .25) / .5, k = 1 - fall * smooth(t < 0 ? 0 : t > 1 ? 1 : t);
            if (d->p.round_scope) {
                double e = (d->p.scope_r - r) * c->scale + .5;
                if (e < .5) c->owner[at] = NOBODY;
                k *= e < 0 ? 0 : e > 1 ? 1 : e;
            }
            double grain = 0;
            if (d->natural) {
                uint32_t h =
                    (uint32_t)x * 0x9E3779B1u ^ (uint32_t)y * 0x85EBCA77u ^ (uint32_t)d->r.stream * 0xC2B2AE3Du;
                h ^= h >> 15, h *= 0x2C1B3C6Du, h ^= h >> 12, h *= 0x297A2D39u, h ^= h >> 15;
                grain = ((h & 255) / 255.0 - .5) * 6;
            }
            for (int i = 0; i < 3; i++) {
                double v = (double)c->rgb[3 * at + (size_t)i] * k * 255 + (k > 0 ? grain : 0);
                out[3 * at + (size_t)i] = (uint8_t)(v <= 0 ? 0 : v >= 255 ? 255 : v + .5);
            }
        }
}

// ------------------------------------------------------------------------------------------------------- the labels
typedef struct Extent {
    int64_t pixels;
    int x1, y1, x2, y2;
} Extent;

static const char *step_of(const SceneTruth *t, enum Phase phase) {
    bool few = t->n_tools < 2;
    switch (phase) {
    case PREPARATION: return few ? "explore the field" : "expose the gallbladder";
    case CALOT: return t->cvs ? "confirm the critical view" : few ? "expose the gallbladder" : "dissect the triangle";
    case CLIPPING: return t->cvs ? "clip and divide" : "reassess the anatomy";
    case DISSECTION: return few ? "inspect the bed" : "free the gallbladder";
    case CLEANING: return few ? "inspect the bed" : "clean the bed";
    case PACKAGING: return "bag the specimen";
    default: return few ? "remove the specimen" : "bag the specimen";
    }
}

static bool seen(const SceneTruth *t, const char *name) {
    for (int i = 0; i < t->n_tissues; i++)
        if (!strcmp(t->tissues[i].name, name)) return true;
    return false;
}
static bool uses(const SceneTruth *t, const char *tool) {
    for (int i = 0; i < t->n_tools; i++)
        if (!strcmp(t->tools[i].name, tool)) return true;
    return false;
}
// Whether a tube still reaches the gallbladder: their boxes are less than 3 % of the picture apart.
static bool reaches(const SceneTruth *t, const char *tube, double limit) {
    const Box *a = NULL, *b = NULL;
    for (int i = 0; i < t->n_tissues; i++) {
        if (!strcmp(t->tissues[i].name, "gallbladder")) a = &t->tissues[i].box;
        if (!strcmp(t->tissues[i].name, tube)) b = &t->tissues[i].box;
    }
    if (!a || !b) return false;
    double x = fmax(a->x1 - b->x2, b->x1 - a->x2), y = fmax(a->y1 - b->y2, b->y1 - a->y2);
    return fmax(x, y) <= limit;
}

// The phase, from what is in the picture alone.
static enum Phase phase_of(const SceneTruth *t) {
    bool sac = seen(t, "gallbladder"),
         tubes = seen(t, "cystic_duct") || seen(t, "cystic_artery") || seen(t, "cystic_pedicle");
    if (seen(t, "specimen_bag")) return sac ? PACKAGING : RETRACTION;
    if (!sac) return CLEANING;
    if (seen(t, "clip") && seen(t, "cystic_plate") && !t->attached) return DISSECTION;
    if (uses(t, "clipper") || seen(t, "clip")) return CLIPPING;
    return tubes ? CALOT : PREPARATION;
}

// Of the triangle between duct, artery and liver: how much of it is not behind an instrument, and how much of that is
// fat or other covering tissue.
static void look_at_triangle(const Canvas *c, const Draft *d, double *open, double *covered) {
    V tri[4] = {plus(d->p.artery_root, (V){.02, 0}), d->p.artery_end, d->p.duct_end, plus(d->neck, (V){.02, .01})};
    V low = {9, 9}, high = {-9, -9};
    for (int i = 0; i < 4; i++) {
        tri[i] = to_view(c, tri[i]);
        low = (V){fmin(low.x, tri[i].x), fmin(low.y, tri[i].y)},
        high = (V){fmax(high.x, tri[i].x), fmax(high.y, tri[i].y)};
    }
    Shape s = polygon(tri, 4, 1);
    int64_t n = 0, tools = 0, fatty = 0;
    for (int y = 0; y < c->h; y++)
        for (int x = 0; x < c->w; x++) {
            V p = {(x + .5 - c->left) / c->scale, (y + .5 - c->top) / c->scale};
            if (p.x < low.x || p.x > high.x || p.y < low.y || p.y > high.y || hit_polygon(&s, p.x, p.y).d > 0) continue;
            int o = c->owner[(size_t)y * (size_t)c->w + (size_t)x];
            n++, tools += o >= TOOL || o == NOBODY,
                fatty += o == FAT || o == PEDICLE || o == PERITONEUM || o == ADHESION;
        }
    *open = n ? (double)(n - tools) / (double)n : 0, *covered = n > tools ? (double)fatty / (double)(n - tools) : 1;
}

static Box box_of(const Extent *e) { return (Box){.x1 = e->x1, .y1 = e->y1, .x2 = e->x2, .y2 = e->y2}; }
static void join(Extent *a, const Extent *b) {
    if (!b->pixels) return;
    if (!a->pixels) *a = *b;
    else {
        a->pixels += b->pixels;
        a->x1 = a->x1 < b->x1 ? a->x1 : b->x1, a->y1 = a->y1 < b->y1 ? a->y1 : b->y1;
        a->x2 = a->x2 > b->x2 ? a->x2 : b->x2, a->y2 = a->y2 > b->y2 ? a->y2 : b->y2;
    }
}

const char *scene_owner_name(const Scene *s, int owner) {
    if (owner <= NOBODY || owner >= TOOL + 2 * s->truth.n_tools) return NULL;
    return owner < TOOL ? owners[owner].name : s->truth.tools[(owner - TOOL) / 2].name;
}

// Fills the truth from the finished picture. False when something that was meant cannot be seen well enough.
static bool measure(const Canvas *c, const Draft *d, bool robot, SceneTruth *t) {
    Extent e[OWNERS] = {{0}};
    for (int y = 0; y < c->h; y++)
        for (int x = 0; x < c->w; x++) {
            Extent *o = &e[c->owner[(size_t)y * (size_t)c->w + (size_t)x]];
            if (!o->pixels) *o = (Extent){0, x, y, x + 1, y + 1};
            o->pixels++;
            if (x < o->x1) o->x1 = x;
            if (x >= o->x2) o->x2 = x + 1;
            o->y2 = y + 1;
        }
    double square = c->scale * c->scale; // shares are of the square in the middle
    bool good = true;
    t->n_tools = t->n_tissues = 0;
    for (int o = CAVITY; o < TOOL; o++) {
        double part = (double)e[o].pixels / square;
        bool large = o == CAVITY || o == LIVER || o == OMENTUM || o == GUT || o == PUBIS || o == BLADDER ||
                     o == PROSTATE || o == PERITONEUM || o == FAT || o == PLATE;
        bool enough = part >= owners[o].least && e[o].pixels > 3 &&
                      (large || (double)e[o].pixels * 100 >= LEAST_SHARE_PERCENT * (double)c->drawn[o]);
        if (!enough || (robot && o == CAVITY)) continue; // no name of ours fits the wall of the pelvis
        SceneTissue *s = &t->tissues[t->n_tissues++];
        *s = (SceneTissue){.name = owners[o].name,
                           .tissue = owners[o].tissue,
                           .box = box_of(&e[o]),
                           .pixels = e[o].pixels,
                           .share = part};
        snprintf(s->box.label, sizeof s->box.label, "%s", s->name);
    }
    for (int k = 0; k < d->n; k++) {
        const Pose *p = &d->tool[k];
        SceneTool *s = &t->tools[t->n_tools++];
        Extent *shaft = &e[TOOL + 2 * k], *head = &e[TOOL + 2 * k + 1], both = *shaft;
        int64_t drawn_head = c->drawn[TOOL + 2 * k + 1], drawn = drawn_head + c->drawn[TOOL + 2 * k];
        join(&both, head);
        *s = (SceneTool){.name = tool_names[robot][p->class],
                         .tool = p->class,
                         .triplet = -1,
                         .box = box_of(&both),
                         .pixels = both.pixels};
        snprintf(s->box.label, sizeof s->box.label, "%s", s->name);
        s->head = box_of(head);
        s->visible = drawn ? (double)both.pixels / (double)drawn : 0;
        s->visible = s->visible > 1 ? 1 : s->visible;
        s->tip_x = c->left + c->scale * p->tip.x, s->tip_y = c->top + c->scale * p->tip.y;
        int x = (int)floor(s->tip_x), y = (int)floor(s->tip_y);
        bool inside = x >= 0 && y >= 0 && x < c->w && y < c->h, own = false;
        int near = (int)((.02 + .17 * p->size * sin(p->open)) * c->scale) + 1;
        for (int v = y - near; v <= y + near;
             v++) // the tip is seen: part of the head is near it (open jaws: between them)
            for (int u = x - near; u <= x + near && !own; u++)
                own = u >= 0 && v >= 0 && u < c->w && v < c->h &&
                      c->owner[(size_t)v * (size_t)c->w + (size_t)u] == TOOL + 2 * k + 1;
        good = good && own;
        good = good && inside && c->owner[(size_t)y * (size_t)c->w + (size_t)x] != NOBODY;
        good = good && (double)head->pixels >= .6 * (double)drawn_head && (double)head->pixels >= .0035 * square &&
               s->visible > .4;
        s->cell = inside ? task_grid_cell(s->tip_x, s->tip_y, c->w, c->h) : "";
        for (int j = 0; j < k; j++) good = good && distance(p->tip, d->tool[j].tip) > .09;
        if (robot) continue;
        s->verb = cholect50_verbs[p->verb], s->target = cholect50_targets[p->target],
        s->triplet = bank_of(p->class, p->verb, p->target);
        CHECK(s->triplet >= 0, "%s %s %s is not in the bank", s->name, s->verb, s->target);
        good = good && (p->owner_target == NOBODY || seen(t, s->target));
    }
    if (robot) {
        bool needle = seen(t, "suture_needle"), thread = seen(t, "thread");
        bool with_needle = d->action == PICKING || d->action == POSITIONING || d->action == PUSHING ||
                           d->action == PULLING || d->action == RETURNING;
        t->action = rarp50_actions[d->action];
        return good && needle == with_needle && thread == (d->action != OTHER);
    }
    double open = 0, covered = 1;
    bool early = d->phase <= CLIPPING;
    if (early) look_at_triangle(c, d, &open, &covered);
    bool sac = seen(t, "gallbladder"), lower = seen(t, "cystic_plate");
    t->cvs_asked = early;
    t->criteria[0] = early && sac && seen(t, "cystic_duct") && seen(t, "cystic_artery") && !seen(t, "cystic_pedicle");
    t->criteria[1] = early && sac && open >= .4 && covered <= .2;
    t->criteria[2] = early && sac && lower;
    t->cvs = t->criteria[0] && t->criteria[1] && t->criteria[2];
    t->attached = reaches(t, "cystic_duct", .03 * c->scale) || reaches(t, "cystic_artery", .03 * c->scale) ||
                  reaches(t, "cystic_pedicle", .03 * c->scale);
    enum Phase phase = phase_of(t);
    t->phase = phases[phase], t->step = step_of(t, phase);
    bool dissecting = false, clips = seen(t, "clip");
    for (int k = 0; k < t->n_tools; k++) dissecting = dissecting || !strcmp(t->tools[k].verb, "dissect");
    t->also = phase == CALOT && t->cvs && !dissecting ? phases[CLIPPING]
              : phase == CLIPPING && !clips           ? phases[CALOT]
                                                      : NULL;
    bool meant[3] = {(phase == CALOT || phase == CLIPPING) && d->artery,
                     (phase == CALOT || phase == CLIPPING) && d->cleared, d->detached};
    return good && phase == d->phase && t->criteria[0] == meant[0] && t->criteria[1] == meant[1] &&
           t->criteria[2] == meant[2];
}

// ------------------------------------------------------------------------------------------------------- the scene
enum { MOST_DRAFTS = 150 }; // after these the view is as plain as it can be

void scene_render(Scene *s, const SceneOptions *o) {
    CHECK(o->width >= 64 && o->width <= 1024 && o->height >= 64 && o->height <= 1024, "a scene of %d x %d", o->width,
          o->height);
    CHECK(o->index >= 0, "scene %lld", (long long)o->index);
    pthread_once(&tile_once, tile_make);
    int64_t group = o->group > 0 ? o->group : SCENE_GROUP;
    size_t pixels = (size_t)o->width * (size_t)o->height;
    *s = (Scene){.width = o->width, .height = o->height};
    s->rgb = alloc_or_die(pixels, 3, "a scene");
    s->owner = alloc_or_die(pixels, 1, "a scene");
    Canvas c = {.w = o->width, .h = o->height, .owner = s->owner, .scale = o->width < o->height ? o->width : o->height};
    c.left = (o->width - c.scale) / 2, c.top = (o->height - c.scale) / 2;
    c.rgb = alloc_or_die(pixels * 3, sizeof *c.rgb, "a scene");
    c.texture = o->style == SCENE_NATURAL ? 1 : .38, c.bump = o->style == SCENE_NATURAL ? 1 : 0;
    c.gloss = o->style == SCENE_NATURAL ? 1 : .4;
    SceneTruth *t = &s->truth;
    int64_t number = o->index / group;
    Patient patient = patient_make(o->seed, number);
    bool robot = o->kind == SCENE_RARP || (o->kind == SCENE_MIXED && number % 2);
    for (int draft = 0;; draft++) {
        Draft d = {.r = {o->seed, (uint64_t)o->index << 8 | (uint64_t)(FIELD_DRAFT + draft), 0},
                   .p = patient,
                   .natural = o->style == SCENE_NATURAL};
        Random *r = &d.r;
        memset(c.drawn, 0, sizeof c.drawn), memset(s->owner, 0, pixels);
        double turn = between(r, -.16, .16);
        c.cos_a = cos(turn), c.sin_a = sin(turn), c.zoom = between(r, .96, 1.12);
        c.dx = between(r, -.04, .04), c.dy = between(r, -.035, .03);
        double haze = uniform(r), how = uniform(r), shaken = uniform(r),
               far = uniform(r); // the same draws in both styles
        d.smoke_at = (V){between(r, .2, .8), between(r, .2, .8)};
        d.smoke = haze < (d.natural ? .14 : .05) ? .12 + (d.natural ? .22 : .08) * how : 0;
        d.blur = d.natural && shaken < .12 ? .003 + .003 * far : 0;
        CHECK(draft < 100 * MOST_DRAFTS, "scene %lld of seed %llu cannot be drawn", (long long)o->index,
              (unsigned long long)o->seed);
        if (robot) compose_suturing(&d, &c, draft >= MOST_DRAFTS);
        else compose_cholec(&d, &c, draft >= MOST_DRAFTS);
        bool inside = true;
        for (int k = 0; k < d.n; k++) {
            V p = d.tool[k].tip;
            inside = inside && p.x > .06 && p.x < .94 && p.y > .06 && p.y < .94;
            for (int j = 0; j < k; j++) { // nor under the shaft of an instrument in front
                V q = d.tool[j].tip, u = polar(d.tool[j].angle, 1);
                double at = (p.x - q.x) * u.x + (p.y - q.y) * u.y, off = fabs((p.y - q.y) * u.x - (p.x - q.x) * u.y);
                inside = inside && distance(p, q) > .09 && (at < 0 || off > .045);
            }
        }
        if (!inside) continue;
        if (robot) draw_pelvis(&c, &d), draw_suture(&c, &d);
        else draw_cholec(&c, &d);
        for (int k = 0; k < d.n && !robot; k++) draw_act_below(&c, &d, &d.tool[k]);
        for (int k = d.n - 1; k >= 0; k--) draw_tool(&c, &d, k, robot);
        for (int k = 0; k < d.n && !robot; k++) draw_act_above(&c, &d, &d.tool[k]);
        if (robot) draw_suture_above(&c, &d);
        *t = (SceneTruth){.robotic = robot, .patient = number, .frame = o->index % group, .drafts = draft + 1};
        t->smoke = d.smoke, t->blur = d.blur, t->round_scope = patient.round_scope;
        finish(&c, &d, s->rgb);
        if (measure(&c, &d, robot, t)) break;
    }
    free(c.rgb);
}

void scene_free(Scene *s) {
    free(s->rgb), free(s->owner);
    *s = (Scene){0};
}

static void print_box(Text *out, const Box *b) {
    text_addf(out, "[%d,%d,%d,%d]", (int)b->x1, (int)b->y1, (int)b->x2, (int)b->y2);
}
void scene_truth_json(const Scene *s, Text *out) {
    const SceneTruth *t = &s->truth;
    text_addf(out, "{\"kind\":\"%s\",\"patient\":%lld,\"frame\":%lld,\"size\":[%d,%d],\"count\":%d",
              t->robotic ? "rarp" : "cholec", (long long)t->patient, (long long)t->frame, s->width, s->height,
              t->n_tools);
    if (t->robotic) text_addf(out, ",\"action\":\"%s\"", t->action);
    else {
        text_addf(out, ",\"phase\":\"%s\",\"step\":\"%s\"", t->phase, t->step);
        if (t->also) text_addf(out, ",\"also_plausible\":\"%s\"", t->also);
        if (t->cvs_asked)
            text_addf(out, ",\"cvs\":{\"c1\":%s,\"c2\":%s,\"c3\":%s,\"achieved\":%s}",
                      t->criteria[0] ? "true" : "false", t->criteria[1] ? "true" : "false",
                      t->criteria[2] ? "true" : "false", t->cvs ? "true" : "false");
    }
    text_addf(out, ",\"tools\":[");
    for (int i = 0; i < t->n_tools; i++) {
        const SceneTool *k = &t->tools[i];
        text_addf(out, "%s{\"name\":\"%s\",\"box\":", i ? "," : "", k->name);
        print_box(out, &k->box);
        text_addf(out, ",\"head\":");
        print_box(out, &k->head);
        text_addf(out, ",\"tip\":[%.1f,%.1f],\"cell\":\"%s\",\"visible\":%.2f", k->tip_x, k->tip_y, k->cell,
                  k->visible);
        if (k->verb)
            text_addf(out, ",\"verb\":\"%s\",\"target\":\"%s\",\"triplet\":%d", k->verb, k->target, k->triplet);
        text_addf(out, "}");
    }
    for (int kind = 1; kind >= 0; kind--) {
        text_addf(out, "],\"%s\":[", kind ? "tissues" : "objects");
        for (int i = 0, n = 0; i < t->n_tissues; i++) {
            if (t->tissues[i].tissue != kind) continue;
            text_addf(out, "%s{\"name\":\"%s\",\"box\":", n++ ? "," : "", t->tissues[i].name);
            print_box(out, &t->tissues[i].box);
            text_addf(out, ",\"share\":%.4f}", t->tissues[i].share);
        }
    }
    text_addf(out, "],\"smoke\":%.2f,\"blur\":%s,\"round_scope\":%s}", t->smoke, t->blur > 0 ? "true" : "false",
              t->round_scope ? "true" : "false");
}

// ------------------------------------------------------------------------------------------------------- the records
static const char *const steps[] = {
    "explore the field",    "expose the gallbladder", "dissect the triangle", "confirm the critical view",
    "reassess the anatomy", "clip and divide",        "free the gallbladder", "inspect the bed",
    "bag the specimen",     "clean the bed",          "remove the specimen"};
static const char *const cells[] = {"upper left",   "upper middle", "upper right",  "middle left", "center",
                                    "middle right", "lower left",   "lower middle", "lower right"};
#define WORDS(list) list, (int)(sizeof list / sizeof *list)

typedef struct Writer {
    const Scene *s;
    const SceneRecords *how;
    TaskItem item;
    Text *lines; // [n] one record each
    int *tasks;  // [n] of which task
    int n, cap;
    const char *part; // ends the id where one tool has two questions of a task
} Writer;

// What each cell of `side` x `side` pixels shows: the instrument that has at least a sixth of it, else the structure that
// has most. A list of words in raster order; null where nothing is owned. Of a longer name the last part, which tells
// cystic_duct from cystic_artery: only the first token of a word becomes a target.
static void cells_json(const Scene *s, int side, Text *out) {
    text_addf(out, "\"cells\":[");
    for (int top = 0; top < s->height; top += side)
        for (int left = 0; left < s->width; left += side) {
            int count[OWNERS] = {0}, best = NOBODY, n = 0;
            for (int y = top; y < top + side && y < s->height; y++)
                for (int x = left; x < left + side && x < s->width; x++, n++)
                    count[s->owner[(size_t)y * (size_t)s->width + (size_t)x]]++;
            for (int k = 0; k < s->truth.n_tools; k++) { // shaft and jaws are one
                int *both = &count[TOOL + 2 * k];
                both[0] += both[1], both[1] = 0;
                if (6 * both[0] < n) both[0] = 0;
                else both[0] += n; // before any structure
            }
            for (int o = 0; o < OWNERS; o++)
                if (o != NOBODY && count[o] > count[best]) best = o;
            const char *name = count[best] ? scene_owner_name(s, best) : NULL;
            if (name && strrchr(name, '_')) name = strrchr(name, '_') + 1;
            text_addf(out, "%s", top || left ? "," : "");
            if (name) text_add_json_string(out, name, strlen(name));
            else text_addf(out, "null");
        }
    text_addf(out, "]");
}

static void write_item(Writer *w, enum Task task, const char *slot, const char *question, const char *answer,
                       Box *boxes, int n_boxes, const char *const *choices, int n_choices) {
    if (!(w->how->tasks >> task & 1)) return;
    char id[160];
    snprintf(id, sizeof id, "%s-%s%s%s%s", w->item.video, task_info(task)->name, slot ? "-" : "", slot ? slot : "",
             w->part);
    for (char *p = id; *p; p++)
        if (*p == ' ') *p = '_';
    TaskItem item = w->item;
    char patient[96];
    snprintf(patient, sizeof patient, "scenes-%llu-%lld", (unsigned long long)w->how->seed,
             (long long)w->s->truth.patient);
    item.task = task, item.id = id, item.slot = slot, item.question = question, item.answer = answer;
    item.patient = item.video = patient;
    item.boxes = boxes, item.n_boxes = n_boxes, item.choices = choices, item.n_choices = n_choices;
    TaskWording wording = w->how->wording;
    wording.choices = wording.choices && n_choices > 0;
    Text text = {0};
    if (w->how->answers && !task_answer_text(&item, wording, &text)) {
        text_free(&text);
        return;
    }
    if (w->n == w->cap) {
        w->cap = w->cap ? 2 * w->cap : 32;
        w->lines = grow_or_die(w->lines, (size_t)w->cap, sizeof *w->lines, "records");
        w->tasks = grow_or_die(w->tasks, (size_t)w->cap, sizeof *w->tasks, "records");
    }
    w->lines[w->n] = (Text){0}, w->tasks[w->n] = (int)task;
    task_record_print(&item, wording, w->how->answers ? text.p : NULL, NULL, &w->lines[w->n++]);
    text_free(&text);
}

// A line of the file; the first of a frame carries what the cells of the picture show.
static void write_line(const Writer *w, const Text *line, bool first, Text *out) {
    if (!first || !w->how->cell) {
        text_add(out, line->p, line->len);
        return;
    }
    text_add(out, line->p, line->len - 2); // without "}\n"
    text_addf(out, ",");
    cells_json(w->s, w->how->cell, out);
    text_addf(out, "}\n");
}

// Shuffles the lines, then lets the tasks take turns: every task has its first question before one has its second, so that
// ten tissues do not crowd out two instruments.
static void draw_in_turn(Writer *w, const char *name) {
    for (int i = 0; i < w->n; i++) {
        int k = i + task_pick(w->how->seed, name, (uint32_t)(100 + i), w->n - i), task = w->tasks[k];
        Text line = w->lines[k];
        w->lines[k] = w->lines[i], w->tasks[k] = w->tasks[i];
        w->lines[i] = line, w->tasks[i] = task;
    }
    for (int at = 0; at < w->n;) { // [0, at) is in order
        uint32_t had = 0;
        for (int i = at; i < w->n; i++) {
            if (had >> w->tasks[i] & 1) continue;
            had |= 1u << w->tasks[i];
            Text line = w->lines[i];
            int task = w->tasks[i];
            memmove(w->lines + at + 1, w->lines + at, (size_t)(i - at) * sizeof *w->lines);
            memmove(w->tasks + at + 1, w->tasks + at, (size_t)(i - at) * sizeof *w->tasks);
            w->lines[at] = line, w->tasks[at++] = task;
        }
    }
}

static bool only_one(const SceneTruth *t, int k) { // of its name: else "the grasper" is nobody in particular
    for (int i = 0; i < t->n_tools; i++)
        if (i != k && !strcmp(t->tools[i].name, t->tools[k].name)) return false;
    return true;
}

int scene_records(const Scene *s, const SceneRecords *how, Text *out) {
    const SceneTruth *t = &s->truth;
    char name[96], number[8];
    Text tools = {0}, tissues = {0}, triplets = {0}, truth = {0};
    const char *names[40];
    Box boxes[4];
    snprintf(name, sizeof name, "scenes-%llu-%06lld", (unsigned long long)how->seed, (long long)how->index);
    snprintf(number, sizeof number, "%d", t->n_tools);
    if (how->truth) scene_truth_json(s, &truth);
    Writer w = {.s = s, .how = how, .part = ""};
    w.item = (TaskItem){.dataset = "scenes",
                        .video = name,
                        .split = how->split,
                        .image = how->image,
                        .frame = t->frame,
                        .procedure = t->robotic ? "radical prostatectomy" : "laparoscopic cholecystectomy",
                        .width = s->width,
                        .height = s->height,
                        .truth = how->truth ? truth.p : NULL};
    // Level 1: what is there, and where.
    int n = 0;
    for (int i = 0; i < t->n_tools; i++) {
        bool again = false;
        for (int j = 0; j < n; j++) again = again || !strcmp(names[j], t->tools[i].name);
        if (!again) names[n++] = t->tools[i].name;
        boxes[i] = t->tools[i].box;
    }
    task_list_text(names, n, &tools);
    if (n) write_item(&w, TASK_TOOL, NULL, NULL, tools.p, NULL, 0, NULL, 0);
    write_item(&w, TASK_TOOL_BOXES, NULL, NULL, NULL, boxes, t->n_tools, NULL, 0);
    n = 0;
    for (int i = 0; i < t->n_tissues; i++)
        if (t->tissues[i].tissue) names[n++] = t->tissues[i].name;
    task_list_text(names, n, &tissues);
    if (n) write_item(&w, TASK_TISSUE, NULL, NULL, tissues.p, NULL, 0, NULL, 0);
    for (int i = 0; i < t->n_tissues; i++) { // what lies in several places has not one box
        const char *what = t->tissues[i].name;
        Box b = t->tissues[i].box;
        bool scattered = !strcmp(what, "abdominal_wall_cavity") || !strcmp(what, "clip") ||
                         !strcmp(what, "peritoneum") || (t->robotic && !strcmp(what, "fat"));
        if (!scattered) write_item(&w, TASK_TISSUE_BOX, what, NULL, NULL, &b, 1, NULL, 0);
    }
    for (int i = 0; i < t->n_tools; i++) {
        const SceneTool *k = &t->tools[i];
        Box b = k->box;
        char question[160];
        if (!only_one(t, i)) continue;
        write_item(&w, TASK_TOOL_BOX, k->name, NULL, NULL, &b, 1, NULL, 0);
        write_item(&w, TASK_GRID, k->name, NULL, k->cell, NULL, 0, WORDS(cells));
        if (t->robotic) {
            snprintf(question, sizeof question, "In which region is the tip of the %s?", k->name);
            write_item(&w, TASK_VQLA, k->name, question, k->cell, &b, 1, WORDS(cells));
        } else {
            snprintf(question, sizeof question, "What is the %s doing?", k->name);
            write_item(&w, TASK_VQLA, k->name, question, k->verb, &b, 1, WORDS(cholect50_verbs));
            snprintf(question, sizeof question, "What does the %s act on?", k->name);
            write_item(&w, TASK_VQA, k->name, question, k->target, NULL, 0, WORDS(cholect50_targets));
            w.part = "-doing";
            snprintf(question, sizeof question, "What is the %s doing?", k->name);
            write_item(&w, TASK_VQA, k->name, question, k->verb, NULL, 0, WORDS(cholect50_verbs));
            w.part = "";
        }
    }
    for (int i = 0; i < 3 && t->cvs_asked && !t->robotic; i++)
        write_item(&w, (enum Task)(TASK_CVS1 + i), NULL, NULL, t->criteria[i] ? "yes" : "no", NULL, 0, NULL, 0);
    // Level 2: who does what.
    if (t->robotic) write_item(&w, TASK_ACTION, NULL, NULL, t->action, NULL, 0, WORDS(rarp50_actions));
    for (int i = 0; i < t->n_tools && !t->robotic; i++)
        text_addf(&triplets, "%s%s %s %s", i ? ", " : "", t->tools[i].name, t->tools[i].verb, t->tools[i].target);
    if (triplets.len) write_item(&w, TASK_TRIPLET, NULL, NULL, triplets.p, NULL, 0, NULL, 0);
    // Level 3: what it comes to.
    write_item(&w, TASK_COUNT, NULL, NULL, number, NULL, 0, NULL, 0);
    if (!t->robotic) {
        write_item(&w, TASK_STEP, NULL, NULL, t->step, NULL, 0, WORDS(steps));
        write_item(&w, TASK_PHASE, NULL, NULL, t->phase, NULL, 0, WORDS(phases));
        if (t->cvs_asked) write_item(&w, TASK_CVS, NULL, NULL, t->cvs ? "yes" : "no", NULL, 0, NULL, 0);
        ProtocolMove moves[PROTOCOL_MOST_MOVES];
        for (int i = 0; i < t->n_tools; i++) names[i] = t->tools[i].name;
        int last = protocol_walk(names, t->n_tools, t->criteria, moves) - 1;
        if (t->cvs_asked)
            write_item(&w, TASK_PROTOCOL, NULL, NULL, moves[last].action, NULL, 0, WORDS(protocol_actions));
    }
    int keep = how->per_frame > 0 && how->per_frame < w.n ? how->per_frame : w.n;
    if (keep < w.n) draw_in_turn(&w, name);
    for (int i = 0; i < keep; i++) write_line(&w, &w.lines[i], i == 0, out);
    for (int i = 0; i < w.n; i++) text_free(&w.lines[i]);
    free(w.lines), free(w.tasks);
    text_free(&tools), text_free(&tissues), text_free(&triplets), text_free(&truth);
    return keep;
}
