struct Gradients : Projection {
    static inline void add_rows(float* out, int first, int count, int width, const V* a, bool add) {
        V rows[4] = {a[0]};
        if (width == 3) join3(a, rows);
        if (width == 4) join4(a, rows);
        float* to = out + (long)first * width;
        if (count == 16) {
            for (int k = 0; k < width; ++k) {
                Loose* here = (Loose*)to + k;
                here->v = add ? here->v + rows[k] : rows[k];
            }
            return;
        }
        for (int k = 0; k < count * width; ++k) to[k] = ((float*)rows)[k] + (add ? to[k] : 0.0f);
    }

    // Workers' rows -> gradients of the inputs, and this worker's part of the camera's.
    static void pull(const u64* t, int worker) {
        int lo, hi, count = n(t, COUNT), workers = n(t, WORKERS);
        bool add = n(t, ACCUMULATE) != 0;
        share(count, worker, workers, 64, &lo, &hi);
        Lens l = lens(t);
        double* camera = (double*)t[CAMERA_SUMS] + 16L * worker;
        for (int k = 0; k < 16; ++k) camera[k] = 0;
        bool of_K = t[G_INTRINSICS] != 0;
        V zero = splat(0.0f);
        V w_sum[16];  // of the rows of w2c, and of fx, fy, cx, cy
        for (int k = 0; k < 16; ++k) w_sum[k] = zero;
        for (int first = lo; first < hi; first += 16) {
            int lanes = least(16, hi - first);
            V m[16];
            for (int lane = 0; lane < 16; ++lane) {
                m[lane] = zero;
                for (int w = 0; w < workers && lane < lanes; ++w) {
                    V* part = (V*)(f(t, ROW_GRADIENTS) + ((long)w * count + first + lane) * RECORD);
                    m[lane] += *part;
                    *part = zero;
                }
            }
            transpose(m);
            Projected g;
            project16(t, l, first, lanes, g);
            for (int k = 0; k < 10; ++k) m[k] = pick(g.keep, m[k], zero);
            V inv = 1.0f / g.det;
            V a = g.yy * inv, b = -g.xy * inv, c = g.xx * inv;
            V g_x = -(a * m[1] + b * m[2]), g_y = -(b * m[1] + c * m[2]);
            V g_o = m[0] / pick(g.o > 0.0f, g.o, splat(1.0f));
            V g_a = -0.5f * m[3], g_b = -m[4], g_c = -0.5f * m[5];
            // Through the determinant's own form: -Q (sum v d d^T) Q would cancel for needles.
            V g_det = -(g_a * a + g_b * b + g_c * c) * inv;
            V g_xx = g_c * inv + DILATION * g_det, g_yy = g_a * inv + DILATION * g_det;
            V g_xy = -g_b * inv;
            V g_jx[3] = {zero, zero, zero}, g_jy[3] = {zero, zero, zero}, g_r[3][3], g_s[3];
            for (int k = 0; k < 3; ++k) {
                int i = (k + 1) % 3, j = (k + 2) % 3;
                V t_i = 2.0f * g.turn[i] * g_det, t_j = 2.0f * g.turn[j] * g_det;
                V g_ux = 2.0f * g.ux[k] * g_xx + g.uy[k] * g_xy + t_j * g.uy[i] - t_i * g.uy[j];
                V g_uy = 2.0f * g.uy[k] * g_yy + g.ux[k] * g_xy + t_i * g.ux[j] - t_j * g.ux[i];
                g_s[k] = g_ux * g.ax[k] + g_uy * g.ay[k];
                V g_ax = g_ux * g.s[k], g_ay = g_uy * g.s[k];
                for (int i = 0; i < 3; ++i) {
                    g_jx[i] += g_ax * g.r[i][k];
                    g_jy[i] += g_ay * g.r[i][k];
                    g_r[i][k] = g_ax * g.jx[i] + g_ay * g.jy[i];
                }
            }
            V g_ju = zero, g_jv = zero, along_x = zero, along_y = zero, g_w[12];
            V fx = l.fx * g.inv_z, fy = l.fy * g.inv_z;
            for (int k = 0; k < 3; ++k) {
                g_ju -= fx * g_jx[k] * l.w[2][k];
                g_jv -= fy * g_jy[k] * l.w[2][k];
                along_x += g_jx[k] * g.cam_x[k];
                along_y += g_jy[k] * g.cam_y[k];
                g_w[k] = fx * g_jx[k];
                g_w[4 + k] = fy * g_jy[k];
                g_w[8 + k] = -(fx * g.ju * g_jx[k] + fy * g.jv * g_jy[k]);
            }
            I free_u = vabs(g.u) < l.limit_x, free_v = vabs(g.v) < l.limit_y;
            V g_u = l.fx * g_x + pick(free_u, g_ju, zero);
            V g_v = l.fy * g_y + pick(free_v, g_jv, zero);
            V g_inv_z = l.fx * along_x + l.fy * along_y + g_u * g.cam[0] + g_v * g.cam[1];
            if (of_K) {  // a slope that is held at +-limit = const / f moves with f
                V g_fx = g_x * g.u + along_x * g.inv_z - pick(free_u, zero, g_ju * g.ju) / l.fx;
                V g_fy = g_y * g.v + along_y * g.inv_z - pick(free_v, zero, g_jv * g.jv) / l.fy;
                w_sum[12] += pick(g.keep, g_fx, zero);
                w_sum[13] += pick(g.keep, g_fy, zero);
                w_sum[14] += pick(g.keep, g_x, zero);
                w_sum[15] += pick(g.keep, g_y, zero);
            }
            V g_cam[3] = {g_u * g.inv_z, g_v * g.inv_z, m[9] - g_inv_z * g.inv_z * g.inv_z};
            V g_p[3] = {zero, zero, zero};
            for (int i = 0; i < 3; ++i) {
                V here = pick(g.keep, g_cam[i], zero);
                for (int k = 0; k < 3; ++k) {
                    g_p[k] += l.w[i][k] * here;
                    w_sum[4 * i + k] += pick(g.keep, g_w[4 * i + k] + here * g.p[k], zero);
                }
                w_sum[4 * i + 3] += here;
            }
            V w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
            V g_q[4] = {
                x * (g_r[2][1] - g_r[1][2]) + y * (g_r[0][2] - g_r[2][0]) + z * (g_r[1][0] - g_r[0][1]),
                w * (g_r[2][1] - g_r[1][2]) + y * (g_r[0][1] + g_r[1][0]) + z * (g_r[0][2] + g_r[2][0])
                    - 2.0f * x * (g_r[1][1] + g_r[2][2]),
                w * (g_r[0][2] - g_r[2][0]) + x * (g_r[0][1] + g_r[1][0]) + z * (g_r[1][2] + g_r[2][1])
                    - 2.0f * y * (g_r[0][0] + g_r[2][2]),
                w * (g_r[1][0] - g_r[0][1]) + x * (g_r[0][2] + g_r[2][0]) + y * (g_r[1][2] + g_r[2][1])
                    - 2.0f * z * (g_r[0][0] + g_r[1][1])};
            V along = zero;
            for (int k = 0; k < 4; ++k) along += g_q[k] * g.q[k];
            for (int k = 0; k < 4; ++k) {
                g_q[k] = 2.0f * (g_q[k] - along * g.q[k]) * g.inv_norm;
                g_q[k] = pick(g.keep, g_q[k], zero);
            }
            for (int k = 0; k < 3; ++k) g_s[k] = pick(g.keep, g_s[k], zero);
            add_rows(f(t, G_MEANS), first, lanes, 3, g_p, add);
            add_rows(f(t, G_QUATS), first, lanes, 4, g_q, add);
            add_rows(f(t, G_SCALES), first, lanes, 3, g_s, add);
            add_rows(f(t, G_OPACITIES), first, lanes, 1, &g_o, add);
            add_rows(f(t, G_COLORS), first, lanes, 3, m + 6, add);
            if ((first - lo) % 1024 == 1008 || first + 16 >= hi)
                for (int k = 0; k < 16; ++k) {  // short float sums, long double ones
                    for (int lane = 0; lane < 16; ++lane) camera[k] += w_sum[k][lane];
                    w_sum[k] = zero;
                }
        }
    }

    static void pull_camera(const u64* t, int) {
        float total[16];
        for (int k = 0; k < 16; ++k) {
            double sum = 0;
            for (int w = 0; w < n(t, WORKERS); ++w) sum += ((double*)t[CAMERA_SUMS])[16L * w + k];
            total[k] = (float)sum;
        }
        for (int k = 0; k < 16; ++k) f(t, G_W2C)[k] = k < 12 ? total[k] : 0.0f;
        if (!t[G_INTRINSICS]) return;
        float* K = f(t, G_INTRINSICS);
        for (int k = 0; k < 9; ++k) K[k] = 0;
        K[0] = total[12], K[4] = total[13], K[2] = total[14], K[5] = total[15];
    }
};
